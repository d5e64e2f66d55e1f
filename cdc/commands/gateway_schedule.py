"""The gateway's schedules: APScheduler wakes, PostgreSQL remembers, jobs do the work.

`round` reads how every schedule stands, tells it in metrics, and sets the clock anew for what is due, so that nothing
of it depends on how long this process has lived. A run is claimed in PostgreSQL first: of two gateways one does it.
When a run succeeded is taken from its job, also of one whose gateway has died.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from apscheduler.events import EVENT_JOB_ERROR, JobExecutionEvent
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from psycopg import Connection

from cdc import log, metrics
from cdc.commands.gateway_control import keep
from cdc.commands.gateway_jobs import SILENT, Desk
from cdc.commands.schedule_checks import arguments_of
from cdc.commands.schedule_entries import due, entries
from cdc.config import Config
from cdc.control import schedules
from cdc.control.jobs import Job
from cdc.control.schedules import Standing, Wanted
from cdc.errors import CdcError, ConfigError, PreconditionError
from consumers.gateway.admin import Caller
from consumers.gateway.parts import Parts
from consumers.gateway.schedules import Entry
from consumers.gateway.stats import Statistics

LOG = log.get(__name__)

ROUND_SECONDS = 5.0  # so late a job's end is seen; the clock itself is exact
ORIGIN = "gateway"


class Timetable:
    """Run `round` every ROUND_SECONDS beside the gateway. Raises ConfigError for arguments that no job can take."""

    def __init__(self, config: Config, desk: Desk, parts: Parts, statistics: Statistics) -> None:
        self._config, self._desk, self._parts, self._statistics = config, desk, parts, statistics
        self._schedules = {name: schedule for name, schedule in config.schedule.items() if schedule.enabled}
        self._arguments = {name: arguments_of(name, schedule) for name, schedule in self._schedules.items()}
        self._periods = {name: schedule.period for name, schedule in self._schedules.items()}
        self._clock = AsyncIOScheduler(timezone=UTC)
        self._registered = False
        self._beginning: set[str] = set()
        self._failed: BaseException | None = None

    async def round(self) -> None:
        """Once. Raises CdcError, and what a run raised that nobody foresaw."""
        if self._failed is not None:
            raise self._failed
        subjects = await self._subjects()
        ended, standings, since = await asyncio.to_thread(keep, self._config, partial(self._step, tables=subjects))
        for name, state in ended:
            metrics.SCHEDULE_RUNS.labels(name, state).inc()
        for subject in since:
            metrics.VERIFY_SINCE.labels(subject.store, subject.table).set(subject.first_seen.timestamp())
        self._plan(standings)

    async def read(self) -> list[Entry]:
        """How each schedule stands, by name. Raises ConnectError, StoreError."""
        return await asyncio.to_thread(entries, self._config)

    def close(self) -> None:
        """Nothing is begun any more; jobs end with the desk."""
        if self._clock.running:
            self._clock.shutdown(wait=False)

    async def _subjects(self) -> set[tuple[str, str]]:
        tables = await self._statistics.tables()
        return {(view.name, table) for view in self._parts.stores for table in tables if view.keeps(table)}

    def _step(
        self, connection: Connection[Any], tables: set[tuple[str, str]]
    ) -> tuple[Sequence[tuple[str, str]], Sequence[Standing], Sequence[schedules.Subject]]:
        if not self._registered:
            wanted = [Wanted(name, s.kind, self._periods[name]) for name, s in self._schedules.items()]
            schedules.register(connection, wanted)
            self._registered = True
        Job.fail_silent(connection, SILENT)
        ended = schedules.settle(connection)
        return ended, schedules.standings(connection), schedules.subjects(connection, tables)

    def _plan(self, standings: Sequence[Standing]) -> None:
        """Sets the clock for all that is not running; begins to run it when there is anything to begin."""
        for standing in standings:
            if standing.name not in self._schedules:
                continue
            metrics.SCHEDULE_SUCCESS.labels(standing.name).set(standing.since.timestamp())
            metrics.SCHEDULE_PERIOD.labels(standing.name).set(self._periods[standing.name].total_seconds())
            if standing.job is None and standing.name not in self._beginning:
                self._wake(standing)
        if not self._clock.running:
            logging.getLogger("apscheduler").setLevel(logging.CRITICAL)  # what it logs, `round` raises
            self._clock.add_listener(self._broke, EVENT_JOB_ERROR)
            self._clock.start()

    def _wake(self, standing: Standing) -> None:
        at = max(due(self._config, standing), datetime.now(UTC))
        self._clock.add_job(self._begin, "date", [standing], run_date=at, id=standing.name, replace_existing=True,
                            misfire_grace_time=None)  # fmt: skip

    async def _begin(self, standing: Standing) -> None:
        """A run, when it is still ours to begin; one that cannot begin counts as failed."""
        name = standing.name
        self._beginning.add(name)
        try:
            if await self._claimed(standing):
                await self._start(name)
        except CdcError as error:
            LOG.warning("a schedule cannot be run", schedule=name, reason=error.message, hint=error.hint)
        finally:
            self._beginning.discard(name)

    async def _claimed(self, standing: Standing) -> bool:
        return await asyncio.to_thread(keep, self._config, lambda c: schedules.claim(c, standing))

    async def _start(self, name: str) -> None:
        kind, caller = self._schedules[name].kind, Caller(f"schedule {name}", ORIGIN)
        try:
            job = await self._desk.start(kind, self._arguments[name], caller)
        except (PreconditionError, ConfigError) as error:
            reason = str(error)
            await asyncio.to_thread(keep, self._config, lambda c: schedules.refused(c, name, reason))
            metrics.SCHEDULE_RUNS.labels(name, "refused").inc()
            raise
        await asyncio.to_thread(keep, self._config, lambda c: schedules.running(c, name, job.id))

    def _broke(self, event: JobExecutionEvent) -> None:
        self._failed = event.exception
