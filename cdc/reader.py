"""The reader: PostgreSQL's stream into Kafka. The loop, nothing else; the start is session.py, the shaping
assembler.py.

Two tasks share one loop: `_pump` decodes what the stream brings, `_ship` writes chunks. Feedback for the slot only ever
says what is durable in Kafka together with its progress record. Status goes out on a timer, whatever Kafka does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import psycopg

from cdc.assembler import Assembler
from cdc.assembly import Assembly
from cdc.config import Config
from cdc.errors import CdcError, ConnectError, GapError, LoginError, RecordError, StuckError
from cdc.failpoint import failpoint
from cdc.holding import BACKOFF, hold, pause
from cdc.kafka.chunk import Batches, Outgoing
from cdc.kafka.logs import watch_logs
from cdc.kafka.progress import Progress, SnapshotState
from cdc.log import get
from cdc.metrics import (
    COMMIT_TO_KAFKA,
    READER_BATCH,
    READER_BLOCKED,
    READER_BUFFER,
    READER_BYTES,
    READER_COMMIT_TIME,
    READER_EPOCH,
    READER_FEEDBACK,
    READER_PROGRESS,
    READER_RETRIES,
    SOURCE_GAP,
    SOURCE_HEARTBEAT,
)
from cdc.session import Session, open_session, wanted_snapshots
from cdc.source.beside import beside
from cdc.source.connection import connect_error
from cdc.source.fill import fill
from cdc.source.heartbeat import beat
from cdc.source.rows import Origin
from cdc.source.selection import TablesChanged
from cdc.source.snapshot import OnProgress, SnapshotJob
from cdc.source.stream import PluginFailed, SlotBusy
from cdc.source.watch import watch, watch_slot

log = get(__name__)
DRAIN_BYTES = 256 << 10  # decoded in one go: about 5 ms, in which nothing else runs
GAP_SECONDS = 15.0  # a refused reader stays up that long, so that Prometheus (5 s) sees why
STUCK_TRIES = 3  # the plugin's failures at one change until it is refused: each costs PostgreSQL seconds and gigabytes
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
        self._stop = asyncio.Event()
        self.progress: Progress | None = None

    def stop(self) -> None:
        """Ends `run`; what is under way is finished or repeated at the next start, never lost."""
        self._stop.set()

    async def run(self) -> None:
        """Until `stop`. Raises GapError, PreconditionError, FencedError … when only a person can help."""
        wait = BACKOFF[0]
        while not self._stop.is_set():
            begun = time.monotonic()
            try:
                await self._or_stop(self._session())
            except SlotBusy as busy:
                log.info("standing by", reason=busy.message)
                await self._or_stop(asyncio.sleep(STANDBY_SECONDS))
            except LoginError:
                raise
            except ConnectError as error:
                wait = BACKOFF[0] if time.monotonic() - begun > BACKOFF[1] else min(wait * 2, BACKOFF[1])
                READER_RETRIES.labels(self._config.source_name, type(error).__name__).inc()
                log.warning("waiting", reason=error.message, hint=error.hint, seconds=round(wait, 1))
                await self._refuse_if_stuck(error)
                await self._or_stop(asyncio.sleep(pause(wait)))
            except TablesChanged as change:
                log.info("beginning anew", reason=change.message)
            except GapError as error:
                SOURCE_GAP.labels(self._config.source_name).set(1)
                log.critical("refusing to run", reason=error.message, hint=error.hint)
                await self._or_stop(asyncio.sleep(self._gap_seconds))
                raise
            except RecordError as error:
                await self._wait_for_a_person(error, error.reason)
                raise

    async def _refuse_if_stuck(self, error: ConnectError) -> None:
        """Raises StuckError when the plugin fails at the same change again and again; costly each time, and in vain."""
        place = error.place if isinstance(error, PluginFailed) else ""
        self._failures = self._failures + 1 if place and place == self._place else 1
        self._place = place
        if not place or self._failures < STUCK_TRIES:
            return
        stuck = StuckError(
            f"PostgreSQL cannot show the change at {place}, {self._failures} times in a row: {error.message}",
            hint=f"{_stuck_hint(error.message)}; nothing behind it can be read: docs/operations.md#reader-blocked",
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
        run = _Run(self._config, session, self)
        try:
            await self._at_work(run)
        except ConnectError as error:
            await run.hold(error)
            raise
        finally:
            await session.close()

    async def _at_work(self, run: _Run) -> None:
        try:
            await run.work()
        except* (CdcError, psycopg.Error) as group:
            raise _worst(group) from group


class _Run:
    """One session at work."""

    def __init__(self, config: Config, session: Session, reader: Reader) -> None:
        self._config, self._session, self._reader = config, session, reader
        self._durable = reader.progress = session.progress
        origin = Origin(config.source_name, session.database, session.progress.epoch)
        self._assembler = Assembler(
            config, origin, session.progress, self._request, session.oversized, session.confirmed_lsn
        )
        self._ready = asyncio.Event()
        self._taken = asyncio.Event()
        self._wanted: asyncio.Queue[tuple[tuple[str, str], SnapshotState]] = asyncio.Queue()

    async def work(self) -> None:
        """Until cancelled or a task fails."""
        config, session = self._config, self._session
        log.info("reading", position=str(session.progress.position), tables=len(session.tables))
        self._assembler.begin()
        self._ready.set()
        for name, state in wanted_snapshots(session).items():
            self._wanted.put_nowait((name, state))
        async with asyncio.TaskGroup() as group:
            for task in (self._pump(), self._ship(group), self._status(), self._snapshots()):
                group.create_task(task)
            group.create_task(beat(config))
            group.create_task(self._watch_logs())
            group.create_task(watch(config, session.tables, session.progress.definitions))

    async def _pump(self) -> None:
        """Decodes what has arrived; waits while the chunk is full and the writer busy."""
        stream = self._session.stream
        received = READER_BYTES.labels(self._config.source_name)
        while True:
            payloads = stream.drain(DRAIN_BYTES)
            received.inc(stream.drained_bytes)
            await self._assemble(payloads)
            if self._assembler.ready:
                self._ready.set()
            await (asyncio.sleep(0) if payloads else stream.wait(self._config.postgres.status_seconds))

    async def _assemble(self, payloads: list[bytes]) -> None:
        """Message by message, or as many at once as a run takes."""
        decoder, assembler = self._session.decoder, self._assembler
        at = 0
        while at < len(payloads):
            run = decoder.run(payloads[at])
            stop = assembler.run(run, payloads, at) if run is not None else at
            if stop == at:
                event = decoder.decode(payloads[at])
                stop += 1
                if event is not None:
                    assembler.add(event)
            at = stop
            if assembler.full:
                await self._room()

    async def _room(self) -> None:
        """Back-pressure: until the writer took the full chunk."""
        self._ready.set()
        READER_BUFFER.labels(self._config.source_name).set(self._assembler.pending_bytes)
        while self._assembler.full:
            self._taken.clear()
            await self._taken.wait()

    async def _ship(self, group: asyncio.TaskGroup) -> None:
        """Writes one chunk after the other. While one is under way the next grows, and is prepared once it is full."""
        writing: asyncio.Task[None] | None = None
        while True:
            await self._ready.wait()
            self._ready.clear()
            if writing is not None and not self._assembler.full:
                await writing
            if not self._assembler.ready:
                continue
            chunk = self._assembler.take()
            self._taken.set()
            if chunk.holes:
                await beside(self._fill, chunk)
            if unknown := chunk.records.keys() - self._session.writer.ends.keys():
                raise TablesChanged(f"{', '.join(sorted(unknown))} came later", hint="nothing: its topic is made now")
            prepared = self._session.writer.prepare(chunk)
            chunk.records.clear()  # they are in the batches now
            if writing is not None:
                await writing
            writing = group.create_task(self._write(chunk, prepared))

    async def _write(self, chunk: Assembly, prepared: list[Batches]) -> None:
        written = await self._session.writer.write(chunk, prepared)
        self._settle(chunk, written.durable_us)
        if self._assembler.ready:
            self._ready.set()

    def _fill(self, chunk: Assembly) -> None:
        session = self._session
        fill(session.connection, chunk.holes, session.catalog.text_columns)
        for hole in chunk.holes:
            names = [hole.envelope.table.columns[i].name for i in hole.filled]
            value, headers = hole.envelope.upsert(hole.op, hole.row, hole.ordinal, names)
            key, _, timestamp, _ = chunk.records[hole.topic][hole.index]
            record = self._fitting(chunk, hole.topic, (key, value, timestamp, headers))
            chunk.records[hole.topic][hole.index] = record
            chunk.noted(hole.topic, record[1])

    def _fitting(self, chunk: Assembly, topic: str, record: Outgoing) -> Outgoing:
        oversized = self._session.oversized
        if len(record[0]) + len(record[1] or b"") > oversized.limit:
            return oversized.instead(chunk, topic, record)
        oversized.settled(chunk, topic, record[0], record[2])
        return record

    def _settle(self, chunk: Assembly, durable_us: int) -> None:
        """The chunk is durable: feedback, answers to snapshots, metrics."""
        source = self._config.source_name
        if chunk.progress is not None:
            self._durable = self._reader.progress = chunk.progress
            failpoint("reader.before-feedback")
            self._feedback()
            failpoint("reader.after-feedback")
        for offer in chunk.offers:
            offer.answer(True)
        chunk.tell(self._config.kafka.prefix)
        READER_BATCH.labels(source).observe(chunk.count)
        READER_BUFFER.labels(source).set(self._assembler.pending_bytes)
        READER_PROGRESS.labels(source).set(self._durable.end_lsn)
        READER_EPOCH.labels(source).set(self._durable.epoch)
        if chunk.oldest_us:
            COMMIT_TO_KAFKA.labels(source).observe(max(0.0, (durable_us - chunk.oldest_us) / 1e6))
            READER_COMMIT_TIME.labels(source).set(self._durable.commit_us / 1e6)
        if chunk.heartbeat is not None:
            SOURCE_HEARTBEAT.labels(source).set(chunk.heartbeat.ts_us / 1e6)

    def _feedback(self) -> None:
        """Tells the slot what is durable, never more; nothing new until the stream is known for progress's history."""
        proven = self._assembler.proof.given
        self._session.stream.send_status(self._durable.end_lsn if proven else self._session.confirmed_lsn)
        READER_FEEDBACK.labels(self._config.source_name).set_to_current_time()

    async def hold(self, error: ConnectError) -> None:
        """After a lost server: if it is Kafka, the slot stays ours until Kafka is back."""
        await hold(error, self._session.writer, self._beside(), self._config.source_name)

    async def _beside(self) -> None:
        await asyncio.gather(self._status(), self._watch_logs())

    async def _watch_logs(self) -> None:
        """Until a topic has lost records."""
        config, session = self._config, self._session
        topics = {config.kafka.table_topic(*name): config.kafka.partitions for name in session.tables}
        await watch_logs(config, session.progress.logs, topics)

    async def _status(self) -> None:
        """On a timer: an unanswered wal_sender_timeout would end the stream."""
        while True:
            self._feedback()
            await asyncio.sleep(self._config.postgres.status_seconds)

    def _request(self, content: dict[str, object]) -> None:
        """A logical message asks for a table's snapshot. Noted in progress, so that a restart does not forget it."""
        table = content.get("table")
        if content.get("kind") != "snapshot" or not isinstance(table, list) or tuple(table) not in self._session.tables:
            log.warning("request not understood", reason="unknown kind or table", hint="use `cdc snapshot TABLE`")
            return
        name = (str(table[0]), str(table[1]))
        label = ".".join(name)
        state = SnapshotState(since=self._assembler.here)
        self._assembler.set_snapshot(label, state)
        if label not in self._assembler.requested:  # else the one that has not begun serves both
            self._assembler.requested.add(label)
            self._wanted.put_nowait((name, state))

    async def _snapshots(self) -> None:
        """One table after the other, while the stream goes on."""
        while True:
            name, state = await self._wanted.get()
            self._assembler.requested.discard(".".join(name))
            catalog = self._session.catalog
            table = catalog.table(*name)
            job = SnapshotJob(
                self._config, table, catalog.text_columns(table), state, self._assembler.offer, self._reader.on_snapshot
            )
            await job.run()


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
