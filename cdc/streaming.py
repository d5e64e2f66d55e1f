"""One session at work: two tasks share a loop. `_pump` assembles what the stream brings, `_ship` writes chunks.

Feedback for the slot only ever says what is durable in Kafka together with its progress record. Status goes out on a
timer, whatever Kafka does.
"""

from __future__ import annotations

import asyncio

from cdc.assembler import Assembler
from cdc.assembly import Assembly
from cdc.config import Config
from cdc.errors import ConnectError
from cdc.failpoint import failpoint
from cdc.holding import hold
from cdc.kafka.chunk import Batches, Outgoing
from cdc.kafka.logs import watch_logs
from cdc.kafka.progress import Progress
from cdc.log import get
from cdc.metrics import (
    COMMIT_TO_KAFKA,
    READER_BATCH,
    READER_BUFFER,
    READER_BYTES,
    READER_COMMIT_TIME,
    READER_EPOCH,
    READER_FEEDBACK,
    READER_PROGRESS,
    SOURCE_HEARTBEAT,
)
from cdc.session import Session
from cdc.snapshots import Snapshots
from cdc.source.beside import beside
from cdc.source.fill import fill
from cdc.source.heartbeat import beat
from cdc.source.rows import Origin
from cdc.source.selection import TablesChanged
from cdc.source.snapshot import OnProgress
from cdc.source.watch import watch
from cdc.trail import Trail
from cdc.wishes import Wishes

log = get(__name__)
DRAIN_BYTES = 256 << 10  # assembled in one go: a millisecond or two, in which nothing else runs


class Streaming:
    """Of one session. `progress` is what is durable."""

    def __init__(self, config: Config, session: Session, on_snapshot: OnProgress, wishes: Wishes) -> None:
        self._wishes, self._trail = wishes, Trail(config, "reader")
        self._config, self._session = config, session
        self.progress: Progress = session.progress
        origin = Origin(config.source_name, session.database, session.progress.epoch)
        self._ready = asyncio.Event()
        self._taken = asyncio.Event()
        self._assembler: Assembler = Assembler(
            config,
            origin,
            session.progress,
            lambda content: self._snapshots.request(content),
            session.oversized,
            session.confirmed_lsn,
        )
        self._assembler.tells = self._trail.told
        self._snapshots: Snapshots = Snapshots(config, session, self._assembler, on_snapshot, self._ready.set)

    async def work(self) -> None:
        """Until cancelled or a task fails."""
        config, session = self._config, self._session
        log.info("reading", position=str(session.progress.position), tables=len(session.tables))
        self._assembler.begin()
        self._ready.set()
        async with asyncio.TaskGroup() as group:
            for task in (self._pump(), self._ship(group), self._status(), self._snapshots.work()):
                group.create_task(task)
            group.create_task(beat(config))
            group.create_task(self._watch_logs())
            group.create_task(watch(config, session.tables, session.progress.definitions))

    async def _pump(self) -> None:
        """Decodes what has arrived; waits while the chunk is full and the writer busy."""
        stream, decoder = self._session.stream, self._session.decoder
        received = READER_BYTES.labels(self._config.source_name)
        while True:
            payloads = stream.drain(DRAIN_BYTES)
            received.inc(stream.drained_bytes)
            if payloads and decoder.overtaken(stream.received_lsn):
                await beside(self._session.catalog.advance, stream.received_lsn)
            await self._assemble(payloads)
            if self._assembler.ready:
                self._ready.set()
            await (asyncio.sleep(0) if payloads else stream.wait(self._config.postgres.status_seconds))

    async def _assemble(self, payloads: list[bytes]) -> None:
        """With pauses while the writer is busy."""
        decoder, assembler = self._session.decoder, self._assembler
        at = 0
        while at < len(payloads):
            at = assembler.feed(decoder, payloads, at)
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
            await self._wishes.free("reader")  # while it stands still the stream waits, and the slot with it
            if not self._assembler.ready:
                continue
            chunk = self._assembler.take()
            self._taken.set()
            if chunk.holes:
                await beside(self._fill, chunk)
            if unknown := chunk.records.keys() - self._session.writer.ends.keys():
                raise TablesChanged(f"{', '.join(sorted(unknown))} came later", hint="nothing: its topic is made now")
            prepare = self._session.writer.prepare
            prepared = await beside(prepare, chunk) if chunk.blocks else prepare(chunk)
            chunk.drop()  # all is in the batches now
            if writing is not None:
                await writing
            writing = group.create_task(self._write(chunk, prepared))

    async def _write(self, chunk: Assembly, prepared: list[Batches]) -> None:
        begun = self._trail.now()
        written = await self._session.writer.write(chunk, prepared)
        self._trail.written(chunk.transactions, begun, written.records)
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
            self.progress = chunk.progress
            failpoint("reader.before-feedback")
            self._feedback()
            failpoint("reader.after-feedback")
        for offer in chunk.offers:
            offer.answer(True)
        chunk.tell(self._config.kafka.prefix)
        READER_BATCH.labels(source).observe(chunk.count)
        READER_BUFFER.labels(source).set(self._assembler.pending_bytes)
        READER_PROGRESS.labels(source).set(self.progress.end_lsn)
        READER_EPOCH.labels(source).set(self.progress.epoch)
        if chunk.oldest_us:
            COMMIT_TO_KAFKA.labels(source).observe(max(0.0, (durable_us - chunk.oldest_us) / 1e6))
            READER_COMMIT_TIME.labels(source).set(self.progress.commit_us / 1e6)
        if chunk.heartbeat is not None:
            SOURCE_HEARTBEAT.labels(source).set(chunk.heartbeat.ts_us / 1e6)

    def _feedback(self) -> None:
        """Tells the slot what is durable, never more; nothing new until the stream is known for progress's history."""
        proven = self._assembler.proof.given
        self._session.stream.send_status(self.progress.end_lsn if proven else self._session.confirmed_lsn)
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
