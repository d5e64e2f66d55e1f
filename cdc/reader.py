"""The reader: PostgreSQL's stream into Kafka, session after session. Which error means what; a session's start is
session.py, its work streaming.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import psycopg

from cdc.config import Config
from cdc.ending import end
from cdc.errors import (
    CdcError,
    ConnectError,
    FencedError,
    GapError,
    LoginError,
    PreconditionError,
    RecordError,
    StuckError,
    TopicsLost,
)
from cdc.holding import BACKOFF, pause
from cdc.kafka.progress import Progress
from cdc.log import get
from cdc.metrics import (
    READER_BLOCKED,
    READER_RETRIES,
    SOURCE_GAP,
)
from cdc.resync import resync
from cdc.session import open_session
from cdc.source.connection import connect_error
from cdc.source.selection import TablesChanged
from cdc.source.snapshot import OnProgress
from cdc.source.stream import PluginFailed, SlotBusy
from cdc.source.watch import watch_slot
from cdc.streaming import Streaming
from cdc.waiting import Waiting
from cdc.wishes import Wishes

log = get(__name__)
GAP_SECONDS = 15.0  # a refused reader stays up that long, so that Prometheus (5 s) sees why
STUCK_TRIES = 3  # the plugin's failures at one change until it is refused: each costs PostgreSQL seconds and gigabytes
RESYNC_SECONDS = 600.0  # a large source takes minutes for a resync
FENCED_SECONDS = 60.0  # two readers of one source with slots of their own fence each other without end
STANDBY_SECONDS = 1.0  # how often a standby asks for the slot


class Reader:
    """Runs sessions until stopped; a lost server means a new session, anything else ends the process."""

    def __init__(
        self, config: Config, *, gap_seconds: float = GAP_SECONDS, on_snapshot: OnProgress | None = None
    ) -> None:
        self._config = config
        self.on_snapshot = on_snapshot or _log_progress
        self._gap_seconds = gap_seconds
        self._waits = gap_seconds > 0
        self._failures, self._place = 0, ""  # of the output plugin, in a row, at the same change
        self._fenced = -FENCED_SECONDS  # when another writer took over last, in monotonic seconds
        self._resynced = -RESYNC_SECONDS  # when the topics were written anew last, in monotonic seconds
        self._waiting = Waiting()
        self._stop = asyncio.Event()
        self._wishes = Wishes(config.kafka, "reader")
        self._streaming: Streaming | None = None

    @property
    def progress(self) -> Progress | None:
        """What is durable, as of the latest session."""
        return None if self._streaming is None else self._streaming.progress

    def stop(self) -> None:
        """Ends `run`; what is under way is finished or repeated at the next start, never lost."""
        self._stop.set()

    async def run(self) -> None:
        """Until `stop`. Raises GapError, PreconditionError, FencedError (twice) … when only a person can help."""
        listening = asyncio.ensure_future(self._wishes.listen())
        try:
            await self._run()
        finally:
            await end(listening)

    async def _run(self) -> None:
        wait = BACKOFF[0]
        while not self._stop.is_set():
            begun = time.monotonic()
            try:
                await self._or_stop(self._session())
            except SlotBusy as busy:
                if self._waiting.news(busy.message):
                    log.info("standing by", reason=busy.message)
                await self._or_stop(asyncio.sleep(STANDBY_SECONDS))
            except LoginError:
                raise
            except ConnectError as error:
                wait = BACKOFF[0] if time.monotonic() - begun > BACKOFF[1] else min(wait * 2, BACKOFF[1])
                READER_RETRIES.labels(self._config.source_name, type(error).__name__).inc()
                if self._waiting.news(error.message):
                    log.warning("waiting", reason=error.message, hint=error.hint, seconds=self._waiting.seconds)
                await self._refuse_if_stuck(error)
                await self._or_stop(asyncio.sleep(pause(wait)))
            except FencedError as error:
                self._stand_by_once(error)
            except TablesChanged as change:
                log.info("beginning anew", reason=change.message)
            except GapError as error:
                if self._mends(error):
                    await self._or_stop(self._write_anew(error))
                    continue
                SOURCE_GAP.labels(self._config.source_name).set(1)
                log.critical("refusing to run", reason=error.message, hint=error.hint)
                await self._or_stop(asyncio.sleep(self._gap_seconds))
                raise
            except RecordError as error:
                await self._wait_for_a_person(error, error.reason)
                raise

    def _mends(self, error: GapError) -> bool:
        """Topics that lost records are written anew once in a while: whatever takes them away again needs a person."""
        may = isinstance(error, TopicsLost) and self._config.kafka.lost_topics == "resync"
        return may and time.monotonic() - self._resynced > RESYNC_SECONDS

    async def _write_anew(self, error: GapError) -> None:
        """A resync of our own, in a new epoch. Another reader that was quicker has the slot: we stand by then."""
        log.critical("topics lost records: all tables are read again, in a new epoch", reason=error.message)
        READER_RETRIES.labels(self._config.source_name, type(error).__name__).inc()
        try:
            await resync(self._config)
        except LoginError:
            raise
        except (ConnectError, PreconditionError) as failed:
            if self._waiting.news(failed.message):
                log.warning("it is tried again", reason=failed.message, hint=failed.hint)
            await asyncio.sleep(pause(BACKOFF[1]))
        else:
            self._resynced = time.monotonic()

    def _stand_by_once(self, error: FencedError) -> None:
        """Who hung, and was replaced, hears of it from Kafka or from PostgreSQL, whichever answers first; the next
        session finds the slot busy and waits. Raises when it happens again: the other has a slot of its own."""
        if time.monotonic() - self._fenced < FENCED_SECONDS:
            raise error
        self._fenced = time.monotonic()
        log.warning("another reader took over", reason=error.message)

    async def _refuse_if_stuck(self, error: ConnectError) -> None:
        """Raises StuckError when the plugin fails at the same change again and again; costly each time, and in vain."""
        place = error.place if isinstance(error, PluginFailed) else ""
        self._failures = self._failures + 1 if place and place == self._place else 1
        self._place = place
        if not place or self._failures < STUCK_TRIES:
            return
        stuck = StuckError(
            f"PostgreSQL cannot show the change at {place}, {self._failures} times in a row: {error.message}",
            hint=f"{_stuck_hint(error.message)}; nothing behind it can be read: docs/runbooks.md#reader-blocked",
        )
        await self._wait_for_a_person(stuck, stuck.reason)
        raise stuck from error

    async def _wait_for_a_person(self, error: CdcError, reason: str) -> None:
        """Trying again costs much and cannot help, so the process stays up, says so, and watches its slot."""
        blocked = READER_BLOCKED.labels(self._config.source_name, reason)
        blocked.set(1)
        log.critical("blocked until somebody helps and starts it again", reason=error.message, hint=error.hint)
        if self._waits:
            await self._or_stop(watch_slot(self._config))
        blocked.set(0)

    async def _or_stop(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` until it ends or `stop` is called."""
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                await task
        finally:
            for each in (task, stop):
                each.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)

    async def _session(self) -> None:
        try:
            session = await open_session(self._config)
        except psycopg.Error as error:
            raise connect_error(error) from error
        SOURCE_GAP.labels(self._config.source_name).set(0)
        self._waiting.over()
        streaming = self._streaming = Streaming(self._config, session, self.on_snapshot, self._wishes)
        try:
            await self._at_work(streaming)
        except ConnectError as error:
            await streaming.hold(error)
            raise
        finally:
            await session.close()

    async def _at_work(self, streaming: Streaming) -> None:
        try:
            await streaming.work()
        except* (CdcError, psycopg.Error) as group:
            raise _worst(group) from group


def _stuck_hint(said: str) -> str:
    if "out of memory" in said or "memory alloc" in said:  # 54000 and XX000; what passes by itself never comes here
        return (
            "a row is larger than the plugin can show (1 GB as text): pgoutput may, else `cdc resync` without the row"
        )
    if "publication" in said:
        return "the change is older than the publication, which somebody dropped: run `cdc resync`"
    return "see PostgreSQL's log; where it cannot be mended, run `cdc resync`"


def _log_progress(table: str, rows: int, estimated: int) -> None:
    share = f"{min(100, 100 * rows // estimated)} %" if estimated else "unknown"
    log.info("snapshot goes on", table=table, count=rows, share=share)


def _worst(group: BaseExceptionGroup[CdcError | psycopg.Error]) -> CdcError:
    """The one error to show: what cannot be retried outranks a lost connection."""
    errors: list[CdcError] = []
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            errors.append(_worst(error))
        else:
            errors.append(connect_error(error) if isinstance(error, psycopg.Error) else error)
    return next((error for error in errors if not isinstance(error, ConnectError)), errors[0])
