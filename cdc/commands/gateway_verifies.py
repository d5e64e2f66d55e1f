"""Metrics of verify, from `cdc.verify_runs`: so they tell of every comparison, by a command, a job or a schedule, and
outlive the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from psycopg import Connection

from cdc import metrics
from cdc.commands.gateway_control import keep
from cdc.commands.outcome import KINDS
from cdc.commands.verify import pairs
from cdc.config import Config
from cdc.control import verify_runs
from cdc.control.verify_runs import Newest, Recorded

ROUND_SECONDS = 5.0  # one small query


class Verifies:
    """Sets the gauges, and counts the runs that were recorded since it first looked."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._counted: int | None = None  # the newest run's number

    async def round(self) -> None:
        """Once. Raises ConnectError, and StoreError without the control schema."""
        wanted, newest, fresh = await asyncio.to_thread(self._look)
        for labels in wanted:
            if labels not in {(run.store, run.table) for run in newest}:
                metrics.VERIFY_PASSED.labels(*labels).set(0)
        for run in newest:
            _show(run)
        for recorded in fresh:
            metrics.VERIFY_RUNS.labels(recorded.store, recorded.table, _outcome(recorded)).inc()
        self._counted = max([self._counted or 0, *(run.id for run in (*newest, *fresh))])

    def _look(self) -> tuple[list[tuple[str, str]], Sequence[Newest], Sequence[Recorded]]:
        def step(connection: Connection[Any]) -> tuple[Sequence[Newest], Sequence[Recorded]]:
            with connection.transaction():
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                fresh = [] if self._counted is None else verify_runs.since(connection, self._counted)
                return verify_runs.last(connection), fresh

        return pairs(self._config), *keep(self._config, step)


def _outcome(run: Recorded) -> str:
    """What is unsettled is no difference."""
    if run.error:
        return "failed"
    return "different" if any(getattr(run, kind) for kind in KINDS if kind != "unsettled") else "equal"


def _show(run: Newest) -> None:
    labels = (run.store, run.table)
    metrics.VERIFY_PASSED.labels(*labels).set(run.passed_at.timestamp() if run.passed_at else 0)
    metrics.VERIFY_LAST.labels(*labels).set(run.ended_at.timestamp())
    metrics.VERIFY_SECONDS.labels(*labels).set((run.ended_at - run.started_at).total_seconds())
    metrics.VERIFY_ROWS.labels(*labels).set(run.rows)
    for kind in KINDS:
        metrics.VERIFY_DIFFERENCES.labels(*labels, kind).set(getattr(run, kind))
