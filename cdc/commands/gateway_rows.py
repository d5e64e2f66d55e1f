"""The gateway's jobs that have rows sent again, and what is looked at before a job begins."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cdc.commands.asking_for_rows import Wanted, planned
from cdc.commands.asking_for_rows import backfill as sent_by
from cdc.commands.outcome import Outcome, keep_outcome
from cdc.commands.repair import mend
from cdc.commands.verify import STORES, compare_all, selected
from cdc.config import Config
from cdc.errors import PreconditionError
from consumers.gateway.admin import Impossible

if TYPE_CHECKING:
    from cdc.commands.gateway_work import Report


def check(config: Config, kind: str, arguments: Mapping[str, Any]) -> None:
    """Asks PostgreSQL, so not in an event loop. Raises Impossible for a table, key or condition that there is not, so
    that no job begins; ConnectError."""
    try:
        if kind == "backfill":
            planned(config, Wanted(**arguments))
        elif kind in ("snapshot", "verify", "repair") and "table" in arguments:
            selected(config, arguments["table"])
    except PreconditionError as error:
        raise Impossible(error.message, hint=error.hint) from error


async def backfill(config: Config, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """How many rows were sent, and how many deletes for keys without a row."""
    plan = await asyncio.to_thread(planned, config, Wanted(**arguments))

    def on_rows(rows: int, total: int | None) -> None:
        report.stage, report.done = "rows in Kafka", rows
        report.total = None if total is None else max(rows, total)

    sent = await sent_by(config, plan, on_rows)
    told = {} if sent is None else sent._asdict()
    report.done = report.total = sum(told.values())
    return {"table": arguments["table"], **told}


async def repair(config: Config, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """What differed, how much was sent again, and what differs after that."""
    before = await _compared(config, arguments, report, 0)
    if all(outcome.equal for outcome in before):
        return {"equal": True, "sent": 0, "comparisons_before": _told(before)}
    sent = await mend(config, before, report.say)
    after = await _compared(config, arguments, report, sent)
    equal = all(outcome.equal for outcome in after)
    return {"equal": equal, "sent": sent, "comparisons_before": _told(before), "comparisons_after": _told(after)}


async def _compared(config: Config, arguments: Mapping[str, Any], report: Report, repaired: int) -> list[Outcome]:
    stores = [arguments["store"]] if "store" in arguments else STORES
    told: list[Outcome] = []
    try:
        return await compare_all(config, stores, arguments.get("table"), report.compared, on_outcome=told.append)
    finally:
        for outcome in told:  # also of a store that does not answer
            await asyncio.to_thread(keep_outcome, config, outcome._replace(repaired=repaired), "gateway")


def _told(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    return [outcome.summary() for outcome in outcomes]
