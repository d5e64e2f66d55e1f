"""What the gateway's jobs do: the same as the commands of their names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from cdc.commands import gateway_command
from cdc.commands.cache import cleared
from cdc.commands.gateway_control import keep
from cdc.commands.gateway_rows import backfill, repair
from cdc.commands.outcome import Outcome, keep_outcome
from cdc.commands.pause import wished
from cdc.commands.rebuild import document, fill_anew
from cdc.commands.snapshot import request
from cdc.commands.verify import STORES, Step, compare_all
from cdc.config import Config
from cdc.control import retention
from consumers.rebuild import Progress


@dataclass
class Report:
    """How far a job is; written by its work, read by another thread."""

    asked_by: str = ""
    stage: str | None = None
    done: int | None = None
    total: int | None = None

    def say(self, line: str) -> None:
        """A sentence with figures; an empty one leaves the last."""
        self.stage = line or self.stage

    def reached(self, stage: str, done: int, total: int) -> None:
        """A stage, and how far it is."""
        self.stage, self.done, self.total = stage, done, total

    def compared(self, step: Step) -> None:
        """Of a verify."""
        self.stage, self.done, self.total = step.line, step.done, step.total

    def rows(self, done: int, total: int | None) -> None:
        """Of a snapshot."""
        self.done, self.total = done, total

    def at(self, progress: Progress) -> None:
        """Of a rebuild."""
        self.stage, self.done, self.total = progress.phase, progress.done, progress.total


Work = Callable[[Config, Mapping[str, Any], Report], Coroutine[Any, Any, dict[str, Any]]]


async def refresh_stats(config: Config, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Nothing: the figures after every job are counted anew."""
    return {}


async def verify(config: Config, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """How many keys of each kind differ, by store and table."""
    stores = [arguments["store"]] if "store" in arguments else STORES
    told: list[Outcome] = []
    try:
        outcomes = await compare_all(config, stores, arguments.get("table"), report.compared, on_outcome=told.append)
    finally:
        for outcome in told:  # also of a store that does not answer
            await asyncio.to_thread(keep_outcome, config, outcome, "gateway")
    found = [{name: len(v) if isinstance(v, list) else v for name, v in o.document().items()} for o in outcomes]
    return {"equal": all(outcome.equal for outcome in outcomes), "comparisons": found}


async def rebuild(config: Config, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """As `cdc rebuild --json` tells it."""
    return document(arguments["store"], await fill_anew(config, arguments["store"], None, report.at))


async def snapshot(config: Config, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """How many rows were sent."""
    rows = await request(config, arguments["table"], report.say, on_rows=report.rows)
    report.done = report.total = rows
    return {"table": arguments["table"], "rows": rows}


async def pause(config: Config, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Who stands still, and whether its process has heard it."""
    return await wished(config, arguments["component"], True, report.asked_by, arguments.get("why", ""))


async def resume(config: Config, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """The same for going on."""
    return await wished(config, arguments["component"], False, report.asked_by)


async def prune(config: Config, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """How many old rows of each table of the control schema were removed."""
    removed = await asyncio.to_thread(keep, config, retention.prune)
    return {"removed": removed}


async def command(config: Config, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """How a program of the operator's own ended."""
    return await gateway_command.run(arguments)


async def clear_cache(config: Config, arguments: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Records of each table before and after."""
    return await cleared(config, arguments.get("table"), report.reached)


WORKS: Mapping[str, Work] = {
    "refresh-stats": refresh_stats,
    "verify": verify,
    "rebuild": rebuild,
    "snapshot": snapshot,
    "backfill": backfill,
    "repair": repair,
    "prune": prune,
    "command": command,
    "clear-cache": clear_cache,
    "pause": pause,
    "resume": resume,
}
