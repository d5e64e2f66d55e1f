"""The gateway's long work: each job in a thread with an event loop of its own, kept in PostgreSQL by `cdc.control`.

A job says every second that it lives and how far it is, and sees then whether somebody wants it to stop. One whose
process is gone is found by its silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

from psycopg import Connection

from cdc import log
from cdc.commands.asking import translated
from cdc.commands.gateway_control import keep
from cdc.commands.gateway_rows import check
from cdc.commands.gateway_signals import taken, waiting
from cdc.commands.gateway_work import WORKS, Report
from cdc.config import Config
from cdc.control import audit, jobs
from cdc.errors import CdcError, PreconditionError
from consumers.gateway.admin import Caller, Job
from consumers.gateway.stats import Statistics, Stats
from consumers.retry import delays

LOG = log.get(__name__)

TAKER = "cdc gateway"
MOST = 4  # at once: each may keep a core busy
STEP_SECONDS = 1.0
SILENT = timedelta(seconds=60)  # far beyond a step of a process that lives
ATTEMPTS = 20  # to write how a job ended, some minutes; after that its silence tells
STOPPED = "the gateway was stopped while it ran"
T = TypeVar("T")


class Desk:
    """Fills consumers.gateway.admin.Administration. Raises ConnectError and StoreError when nothing can be kept."""

    def __init__(self, config: Config, statistics: Statistics) -> None:
        self._config = config
        self._statistics = statistics
        self._threads = ThreadPoolExecutor(MOST, "job")
        self._starting = asyncio.Lock()
        self._running: dict[UUID, asyncio.Future[None]] = {}
        self._stopping = False

    async def start(self, kind: str, arguments: Mapping[str, Any], caller: Caller) -> Job:
        """Raises Impossible, and PreconditionError while as much runs as may."""
        await asyncio.to_thread(check, self._config, kind, arguments)
        async with self._starting:
            if len(self._running) >= MOST:
                raise PreconditionError(f"{MOST} jobs are at work", hint="wait for one to end, or cancel one")
            before = figures(await self._statistics.get())
            job = await asyncio.to_thread(self._keep, lambda c: _created(c, kind, arguments, caller, before))
            self._run(job)
        return Job.model_validate(job)

    def _run(self, job: jobs.Job) -> None:
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._threads, self._work, job, loop)
        self._running[job.id] = work
        work.add_done_callback(lambda _: self._running.pop(job.id))

    async def take_signals(self) -> None:
        """As many as there is room for, when any waits."""
        async with self._starting:
            room = MOST - len(self._running)
            if not room or not await asyncio.to_thread(self._keep, waiting):
                return
            before = figures(await self._statistics.get())
            for job in await asyncio.to_thread(
                self._keep, lambda c: taken(c, TAKER, room, before, partial(check, self._config))
            ):
                self._run(job)

    async def read(self, job: UUID) -> Job | None:
        """As it is now."""
        found = await asyncio.to_thread(self._keep, lambda c: jobs.Job.read(_tidied(c), job))
        return None if found is None else Job.model_validate(found)

    async def newest(self, limit: int) -> list[Job]:
        """The newest first."""
        found = await asyncio.to_thread(self._keep, lambda c: jobs.Job.newest(_tidied(c), limit))
        return [Job.model_validate(job) for job in found]

    async def cancel(self, job: UUID, caller: Caller) -> Job | None:
        """It sees that at its next step."""
        found = await asyncio.to_thread(self._keep, lambda c: _cancelled(c, job, caller))
        return None if found is None else Job.model_validate(found)

    async def refused(self, action: str, caller: Caller, reason: str) -> None:
        """Into the audit log."""
        await asyncio.to_thread(
            self._keep,
            lambda c: audit.write(c, caller.actor, action, {}, "refused", origin=caller.origin, reason=reason),
        )

    async def close(self) -> None:
        """Stops what runs, and waits until that is written."""
        self._stopping = True
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown)

    # in the job's thread

    def _work(self, job: jobs.Job, loop: asyncio.AbstractEventLoop) -> None:
        report = Report(job.asked_by)
        try:
            result = asyncio.run(self._supervised(job, report))
        except asyncio.CancelledError:
            ended = (lambda c: job.fail(c, STOPPED)) if self._stopping else job.cancel
        except CdcError as error:
            reason = str(error)
            ended = lambda c: job.fail(c, reason)  # noqa: E731 -- one of three ends
        except Exception as error:  # noqa: BLE001 -- the top of a thread: told with its kind and place
            reason = f"an error nobody foresaw: {type(error).__name__} at {log.place(error)}"
            LOG.error("a job failed", job=str(job.id), reason=reason)  # noqa: TRY400 -- its message may quote values
            ended = lambda c: job.fail(c, reason)  # noqa: E731
        else:
            counts = asyncio.run_coroutine_threadsafe(self._statistics.get(fresh=True), loop).result()
            after = {**figures(counts), "result": result}
            ended = lambda c: job.advance(c, report.done, report.total, report.stage).succeed(c, after)  # noqa: E731
        asyncio.run(self._end(job, ended))

    async def _supervised(self, job: jobs.Job, report: Report) -> dict[str, Any]:
        """The work's result, while it says that it lives."""
        work = WORKS[job.kind](self._config, job.arguments, report)
        task = asyncio.ensure_future(translated(self._config, work))
        while not (await asyncio.wait({task}, timeout=STEP_SECONDS))[0]:
            if self._stopping or await self._cancelling(job, report):
                task.cancel()
        return await task

    async def _cancelling(self, job: jobs.Job, report: Report) -> bool:
        try:
            now = await asyncio.to_thread(self._keep, lambda c: job.advance(c, report.done, report.total, report.stage))
        except PreconditionError:
            return True  # somebody else has ended it
        except CdcError as error:
            LOG.warning("a job's progress cannot be written", job=str(job.id), reason=str(error))
            return False
        return now.cancelling

    async def _end(self, job: jobs.Job, ended: Callable[[Connection[Any]], object]) -> None:
        for delay in islice(delays(), ATTEMPTS):
            try:
                self._keep(ended)
            except PreconditionError as error:
                LOG.warning("a job had ended already", job=str(job.id), reason=str(error))
                return
            except CdcError as error:
                LOG.warning("a job's end cannot be written", job=str(job.id), reason=str(error))
            else:
                return
            await asyncio.sleep(0 if self._stopping else delay)

    def _keep(self, step: Callable[[Connection[Any]], T]) -> T:
        return keep(self._config, step)


def figures(stats: Stats) -> dict[str, Any]:
    """Records by place and table; None for a place that is down."""
    places = {"postgres": stats.source, **stats.stores}
    return {
        name: None if place.tables is None else {table: counts.records for table, counts in place.tables.items()}
        for name, place in places.items()
    }


def _created(
    connection: Connection[Any], kind: str, arguments: Mapping[str, Any], caller: Caller, before: Mapping[str, Any]
) -> jobs.Job:
    """Together with its line in the audit log, or not at all."""
    with connection.transaction():
        job = jobs.Job.create(_tidied(connection), kind, arguments, caller.actor)
        audit.write(connection, caller.actor, f"/admin/{kind}", arguments, "allowed", origin=caller.origin, job=job.id)
        return job.start(connection, before)


def _cancelled(connection: Connection[Any], job: UUID, caller: Caller) -> jobs.Job | None:
    with connection.transaction():
        found = jobs.Job.ask_to_cancel(connection, job)
        if found is not None:
            audit.write(connection, caller.actor, "/jobs/{job}/cancel", {}, "allowed", origin=caller.origin, job=job)
        return found


def _tidied(connection: Connection[Any]) -> Connection[Any]:
    """Jobs that lost their process have ended."""
    for job in jobs.Job.fail_silent(connection, SILENT):
        LOG.warning("a job's process is gone", job=str(job.id), reason=jobs.SILENT)
    return connection
