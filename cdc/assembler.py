"""From the stream's events to chunks for Kafka: ordinals, keys, envelopes, snapshot rows, progress. No I/O.

Promises: records come out in the source's order; every chunk's progress covers exactly what is in it and before it;
what is at or below the progress it started from is skipped. A source transaction above the bounds is cut by ordinal.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from cdc.assembly import Assembly, Offer
from cdc.config import Config
from cdc.envelope import SWEEP_KEY, TRUNCATE_KEY
from cdc.kafka.block import Packed, Rows
from cdc.kafka.chunk import Heartbeat, Outgoing
from cdc.kafka.progress import Backfill, Progress, SnapshotState
from cdc.log import get
from cdc.oversized import Oversized
from cdc.position import Position
from cdc.source.backfill import noted
from cdc.source.events import (
    UNCHANGED,
    UNKNOWN,
    Begin,
    Commit,
    Decoder,
    Event,
    Fragment,
    Message,
    Row,
    Run,
    Table,
    Truncate,
)
from cdc.source.fill import Hole, has_hole
from cdc.source.history import Proof
from cdc.source.rows import SNAPSHOT_HEAD, Envelope, Origin
from cdc.source.snapshot import TableSnapshot
from cdc.source.window import Chunk as SnapshotChunk
from cdc.source.window import Name, Windows
from cdc.trail import Transaction

log = get(__name__)
HOLE_BYTES = 8 << 10  # what an unchanged TOAST column may weigh once filled: a vector of 2,000 floats, a page of text


class Assembler:
    """Feed it events in the order of the stream; take chunks when `ready`."""

    def __init__(
        self,
        config: Config,
        origin: Origin,
        progress: Progress,
        on_request: Callable[[dict[str, object]], None],
        oversized: Oversized | None = None,
        confirmed_lsn: int | None = None,
    ) -> None:
        self._config, self._origin, self._progress, self._on_request = config, origin, progress, on_request
        self._rows_bound, self._bytes_bound = config.kafka.transaction_rows, config.kafka.transaction_bytes
        self._skip = (progress.commit_lsn, progress.ordinal, progress.complete)
        self.proof = Proof(progress, progress.end_lsn if confirmed_lsn is None else confirmed_lsn)
        self._begin = Begin(0, 0, 0)
        self._ordinal = self._skip_to = 0
        self._in_transaction = False
        self._envelopes: dict[int, tuple[Envelope, str, Name]] = {}
        self._chunk = Assembly()
        self._oversized = oversized or Oversized(config, {})
        self._offers: dict[str, Offer] = {}
        self.windows = Windows()
        self.requested: set[str] = set()  # tables asked for whose snapshot has not begun
        self.skipped = 0
        self.tells = False  # whether chunks are to name their transactions
        self._named = 0  # the commit LSN of the last one

    def begin(self) -> None:
        """Makes the first chunk carry the progress we start from, so that a new slot and its progress go together."""
        self._chunk.progress = self._progress

    @property
    def pending_bytes(self) -> int:
        """Size of what has not been taken yet."""
        return self._chunk.nbytes

    @property
    def ready(self) -> bool:
        """Something to write, and not in the middle of a transaction that still fits."""
        return bool(self._chunk) and (not self._in_transaction or self.full)

    @property
    def full(self) -> bool:
        """The bounds of a Kafka transaction are reached."""
        return self._chunk.count >= self._rows_bound or self._chunk.nbytes >= self._bytes_bound

    def take(self) -> Assembly:
        """The chunk so far, with its progress; a new one begins."""
        chunk, self._chunk = self._chunk, Assembly()
        chunk.progress = self._progress
        return chunk

    def offer(self, chunk: SnapshotChunk, snapshot: TableSnapshot, number: int) -> asyncio.Future[bool]:
        """Registers a snapshot chunk before its high message is written."""
        offer = self._offers[chunk.id] = Offer(chunk, snapshot, number)
        return offer.written

    def add(self, event: Event) -> None:
        """One event of the stream."""
        kind = event.__class__
        if kind is Row:
            self._row(event)  # type: ignore[arg-type]
        elif kind is Begin:
            self._start(event)  # type: ignore[arg-type]
        elif kind is Commit:
            self._commit(event)  # type: ignore[arg-type]
        elif kind is Message:
            self._message(event)  # type: ignore[arg-type]
        else:
            self._truncate(event)  # type: ignore[arg-type]

    def feed(self, decoder: Decoder, payloads: list[bytes], at: int) -> int:
        """The message at `at`, or as many from there on as a run takes: the index of the first behind."""
        run = decoder.run(payloads[at])
        stop = self.run(run, payloads, at) if run is not None else at
        if stop == at:
            event = decoder.decode(payloads[at])
            stop += 1
            if event is not None:
                self.add(event)
        return stop

    def run(self, run: Run, payloads: list[bytes], start: int) -> int:
        """As many messages from `start` on as the run takes, as `add` would; the index of the first that it does not,
        which is for `add`."""
        chunk, oversized = self._chunk, self._oversized
        table = run.layout.table
        envelope, topic, name = self._envelopes.get(id(table)) or self._envelope(table)
        target = envelope.target
        if target is None or oversized.letters or self._ordinal < self._skip_to:
            return start
        records: list[Outgoing] = []
        room = self._bytes_bound - chunk.nbytes
        target.bound(records, self._ordinal, self._rows_bound - chunk.count, room, oversized.limit)
        stop = run.take(payloads, start, target)
        if records:
            self._ordinal = target.ordinal
            chunk.extend(topic, records, target.nbytes)
            chunk.noted(topic, records[0][1], len(records))
            if self.windows.by_table:
                for key, _, _, _ in records:
                    self.windows.touch(name, key)
            if self.full:
                self._move(self._ordinal, complete=False)
        return stop

    def _start(self, begin: Begin) -> None:
        if not self.proof.given:
            self.proof.begin(begin)
        lsn, ordinal, complete = self._skip
        seen = begin.commit_lsn < lsn or (begin.commit_lsn == lsn and complete)
        self._skip_to = 0xFFFF_FFFF if seen else ordinal if begin.commit_lsn == lsn else 0
        self._begin, self._ordinal, self._in_transaction = begin, 0, True
        self._envelopes.clear()
        self.windows.delivered(begin.xid)

    def _commit(self, commit: Commit) -> None:
        self._in_transaction = False
        if self._skip_to == 0xFFFF_FFFF:
            self.skipped += 1
            return
        self._move(self._ordinal, complete=True, end_lsn=commit.end_lsn)

    def _move(self, ordinal: int, *, complete: bool, end_lsn: int | None = None) -> None:
        """Progress after the record just added."""
        begin = self._begin
        self._progress = msgspec.structs.replace(
            self._progress,
            commit_lsn=begin.commit_lsn,
            ordinal=ordinal,
            complete=complete,
            end_lsn=self._progress.end_lsn if end_lsn is None else end_lsn,
            commit_us=begin.commit_us,
            xid=begin.xid,
        )
        chunk = self._chunk
        chunk.progress = self._progress
        chunk.oldest_us = chunk.oldest_us or begin.commit_us
        if self.tells and ordinal:
            self._name(begin)

    def _name(self, begin: Begin) -> None:
        """A transaction with records, once a chunk."""
        named = self._chunk.transactions
        if not named or named[-1].commit_lsn != begin.commit_lsn:
            first = self._named != begin.commit_lsn
            named.append(Transaction(self._origin.epoch, begin.commit_lsn, begin.xid, begin.commit_us, first))
            self._named = begin.commit_lsn

    def _next(self) -> int:
        """The next ordinal, 0 when it is in Kafka already."""
        self._ordinal += 1
        return self._ordinal if self._ordinal > self._skip_to else 0

    def _envelope(self, table: Table, *, snapshot: bool = False) -> tuple[Envelope, str, Name]:
        slot = -id(table) if snapshot else id(table)
        found = self._envelopes.get(slot)
        if found is None:
            begin = self._begin
            envelope = Envelope(self._origin, table, (begin.xid, begin.commit_lsn, begin.commit_us), snapshot=snapshot)
            topic = self._config.kafka.table_topic(table.schema, table.name)
            found = self._envelopes[slot] = (envelope, topic, (table.schema, table.name))
        return found

    def _row(self, row: Row) -> None:
        """The hot path: about 4 µs a row here, and as much in the decoder before it."""
        table, new, old = row.table, row.new, row.old
        envelope, topic, name = self._envelopes.get(id(table)) or self._envelope(table)
        op = b"u" if row.op == "u" else b"c"
        if old is not None:  # a delete, or a key change
            op = b"c"
            key = envelope.key(old)
            self._touch(name, key)
            if ordinal := self._next():
                self._delete(envelope, topic, key, old, ordinal)
        if new is not None:
            key = envelope.key(new)
            if self.windows.by_table:
                self._touch(name, key)
            self._ordinal = ordinal = self._ordinal + 1
            if ordinal > self._skip_to:
                self._upsert(envelope, topic, op, key, new, ordinal)
        chunk = self._chunk
        if chunk.count >= self._rows_bound or chunk.nbytes >= self._bytes_bound:
            self._move(self._ordinal, complete=False)

    def _touch(self, name: Name, key: bytes) -> None:
        if self.windows.by_table:
            self.windows.touch(name, key)

    def _upsert(self, envelope: Envelope, topic: str, op: bytes, key: bytes, row: list[Fragment], ordinal: int) -> None:
        chunk = self._chunk
        try:
            value, headers = envelope.upsert(op, row, ordinal)
        except TypeError:  # a mark is no bytes: cheaper to be told than to look at every fragment
            if not has_hole(row):
                raise
            chunk.add(topic, key, None, envelope.timestamp_ms, [])
            chunk.nbytes += sum([HOLE_BYTES if part is UNCHANGED else len(part) for part in row if part is not UNKNOWN])
            index = len(chunk.records[topic]) - 1
            chunk.holes.append(Hole(topic, index, envelope, op, ordinal, row))
            return
        self._put(topic, (key, value, envelope.timestamp_ms, headers))

    def _put(self, topic: str, record: Outgoing) -> None:
        """A row; one that is too large is replaced, and one that follows such a row settles its letter."""
        oversized, chunk = self._oversized, self._chunk
        if len(record[0]) + len(record[1] or b"") > oversized.limit:
            record = oversized.instead(chunk, topic, record)
        elif oversized.letters:
            oversized.settled(chunk, topic, record[0], record[2])
        chunk.add(topic, *record)
        chunk.noted(topic, record[1])

    def _delete(self, envelope: Envelope, topic: str, key: bytes, old: list[Fragment], ordinal: int) -> None:
        value, headers = envelope.delete(old, ordinal)
        self._put(topic, (key, value, envelope.timestamp_ms, headers))
        self._chunk.add(topic, key, None, envelope.timestamp_ms, headers)
        self._chunk.noted(topic, None)

    def _truncate(self, event: Truncate) -> None:
        for table in event.tables:
            envelope, topic, name = self._envelope(table)
            self.windows.truncate(name)
            if ordinal := self._next():
                below = Position(self._origin.epoch, self._begin.commit_lsn, ordinal).encode().decode()
                self._mark(envelope, topic, TRUNCATE_KEY, below, ordinal)
        if self.full:  # the chunk may be taken here: its progress has to tell of the markers
            self._move(self._ordinal, complete=False)

    def _mark(self, envelope: Envelope, topic: str, key: bytes, below: str, ordinal: int) -> None:
        value, headers = envelope.marker(below, ordinal)
        self._chunk.mark(topic, key, value, envelope.timestamp_ms, headers)
        self._chunk.noted(topic, value)

    def _message(self, message: Message) -> None:
        """Heartbeats, watermarks of snapshots, requests; each in a transaction of its own."""
        content = _content(message)
        kind = content.get("kind")
        if kind == "low":
            self._low(content)
        elif kind == "high":
            self._high(str(content.get("chunk")))
        elif self._skip_to:
            return
        elif kind == "heartbeat":
            begin = self._begin
            position = Position(self._origin.epoch, begin.commit_lsn, 0)
            self._chunk.heartbeat = Heartbeat(begin.commit_us, position)
        elif kind != "foreign":
            self._on_request(content)

    def _low(self, content: dict[str, Any]) -> None:
        table = content.get("table")
        if isinstance(table, list) and [type(part) for part in table] == [str, str]:  # else it is not ours
            self.windows.low(str(content.get("chunk")), (table[0], table[1]))

    def _high(self, chunk_id: str) -> None:
        """A snapshot chunk's place in the stream."""
        window, offer = self.windows.high(chunk_id), self._offers.pop(chunk_id, None)
        if offer is None:
            return  # of an earlier run; that chunk is read again
        chunk = offer.chunk
        if window is None or window.truncated or self.windows.raced(window, chunk.shot):
            offer.answer(False)
            return
        envelope, topic, _name = self._envelope(chunk.table, snapshot=True)
        if not self._all(envelope, topic, chunk.rows.without(window.keys)):
            for row in chunk.rows:
                self._one(envelope, topic, row, window.keys)
        self._gone(envelope, topic, chunk.gone, window.keys)
        self._finish(offer, envelope, topic)

    def _all(self, envelope: Envelope, topic: str, rows: Rows) -> bool:
        """The rows as one block; False when each has to be looked at."""
        block, oversized = envelope.block(rows, self._ordinal), self._oversized
        if block is None or oversized.letters or block.largest > oversized.limit:
            return False
        if len(rows):
            self._ordinal += len(rows)
            self._chunk.put(topic, block)
            self._chunk.noted(topic, SNAPSHOT_HEAD, len(rows))
        return True

    def _gone(self, envelope: Envelope, topic: str, gone: Sequence[list[Fragment]], skip: set[bytes]) -> None:
        for old in gone:
            if (key := envelope.key(old)) not in skip:
                self._delete(envelope, topic, key, old, self._next())

    def _one(self, envelope: Envelope, topic: str, row: Packed, skip: set[bytes]) -> None:
        if row[0] not in skip:
            value, headers = envelope.snapshot(row, self._next())
            self._put(topic, (row[0], value, envelope.timestamp_ms, headers))

    def _finish(self, offer: Offer, envelope: Envelope, topic: str) -> None:
        """Progress of the table's snapshot or of a backfill. After a snapshot's last chunk the sweep of what it did not
        write: that is what is of an older epoch, and what is older than the request: whatever existed since was written
        with a newer position, by the chunk that read it or by the stream."""
        chunk = offer.chunk
        self._chunk.offers.append(offer)
        name = ".".join(chunk.name)
        state = offer.snapshot.advance(offer.number, chunk)
        if isinstance(state, Backfill):
            return self._advance_backfill(offer.snapshot.id, state)
        if name not in self.requested:  # else it is to begin anew, also after a restart
            self.set_snapshot(name, state)
        if state.done and (below := state.since or self._epoch_below()):
            self._mark(envelope, topic, SWEEP_KEY, below, self._next())

    def _advance_backfill(self, identity: str, state: Backfill) -> None:
        known = self.backfills.get(identity)
        if known is not None and not known.ended:  # else it has failed meanwhile
            self.set_backfill(identity, state)

    def _epoch_below(self) -> str:
        epoch = self._origin.epoch
        return Position(epoch, 0, 0).encode().decode() if epoch > 1 else ""

    @property
    def here(self) -> str:
        """The position of the transaction being read, in its wire form."""
        return Position(self._origin.epoch, self._begin.commit_lsn, 0).encode().decode()

    def set_snapshot(self, name: str, state: SnapshotState) -> None:
        """Notes the state of a table's snapshot in the progress that goes with the next chunk."""
        snapshots = {**self._progress.snapshots, name: state}
        self._progress = msgspec.structs.replace(self._progress, snapshots=snapshots)
        self._chunk.progress = self._progress

    @property
    def backfills(self) -> dict[str, Backfill]:
        """By id, as the next chunk's progress has them."""
        return self._progress.backfills

    def set_backfill(self, identity: str, state: Backfill) -> None:
        """Notes the state of a backfill in the same way."""
        backfills = noted(self._progress.backfills, identity, state)
        self._progress = msgspec.structs.replace(self._progress, backfills=backfills)
        self._chunk.progress = self._progress


def _content(message: Message) -> dict[str, Any]:
    """Ours is a JSON object. Anybody may write messages, and they hold no rows: passing one over loses nothing, while
    stopping at it would be for good."""
    try:
        content = json.loads(message.content)
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        return content
    log.warning("a logical message with our prefix is not ours", prefix=message.prefix, hint="use another prefix")
    return {"kind": "foreign"}
