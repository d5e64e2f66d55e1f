"""The model's reader: the real assembler, progress and gap check around the model's stream, slot and topics.

What it asserts at every step: the slot is never told more than progress says; a chunk holds exactly the changes that
come next, in order; progress covers what is written and nothing that is not.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

import msgspec

from cdc.assembler import Assembler
from cdc.assembly import Assembly
from cdc.config import parse
from cdc.envelope import SWEEP_KEY, TRUNCATE_KEY
from cdc.kafka.progress import Backfill, Progress, SnapshotState, decode_progress, encode_progress
from cdc.kafka.writer import encode_heartbeat
from cdc.position import MAX_ORDINAL, Position
from cdc.session import first_progress
from cdc.source.backfill import open_among, read_request
from cdc.source.rows import OP, Origin
from cdc.source.slot import Slot, check_gap
from tests.property.delivery.snapshots import Job
from tests.property.delivery.source import NAMES, PREFIX, TOPICS, Name, Source
from tests.property.delivery.topics import Topics, Transaction

SYSTEM = ("1", 1)
CONFIG = parse({"postgres": {"dsn": ""}, "kafka": {"bootstrap": "none", "prefix": PREFIX, "transaction_rows": 5}})


class Run:
    """One process of the reader, from its start to its end."""

    def __init__(self, source: Source, progress: Progress, slot: int) -> None:
        self.jobs: deque[Job] = deque()
        self.backfills: deque[Job] = deque()
        origin = Origin(CONFIG.source_name, "db", progress.epoch)
        self.assembler = Assembler(CONFIG, origin, progress, self._request, confirmed_lsn=slot)
        self.assembler.begin()
        self.taken: deque[Assembly] = deque()
        self.at = next((i for i, tx in enumerate(source.log) if tx.end > slot), len(source.log))
        self.event = 0
        for name in NAMES:
            state = progress.snapshots.get(".".join(name), SnapshotState())
            if not state.done:
                self.jobs.append(Job(name, state))
        for identity, backfill in open_among(progress.backfills).items():
            self._begin(identity, backfill)

    def _begin(self, identity: str, state: Backfill) -> None:
        schema, table = state.table.split(".")
        self.backfills.append(Job((schema, table), state, identity))

    def _request(self, content: dict[str, object]) -> None:
        """As the reader does it."""
        if content["kind"] == "backfill":
            identity, state = read_request(content)
            self.assembler.set_backfill(identity, state)
            return self._begin(identity, state)
        table = content["table"]
        assert isinstance(table, list)
        label = ".".join(table)
        self.assembler.set_snapshot(label, SnapshotState())
        if label not in self.assembler.requested:
            self.assembler.requested.add(label)
            self.jobs.append(Job((table[0], table[1]), SnapshotState()))

    def copy(self, which: int, source: Source, *, cut: bool) -> bool:
        """The next step of the snapshot under way, or of the backfill beside it."""
        for queue in (self.jobs, self.backfills):
            while queue and queue[0].over:
                queue.popleft()
        if self.backfills and (which & 2 or not self.jobs):
            return self.backfills[0].step(which, source, self.assembler, cut=cut)
        if not self.jobs:
            return False
        self.assembler.requested.discard(".".join(self.jobs[0].name))
        return self.jobs[0].step(which, source, self.assembler, cut=cut)


class Reading:
    """What outlives a reader: the slot, progress and heartbeats; and the reader, if one runs."""

    def __init__(self, source: Source, topics: Topics) -> None:
        self.source, self.topics = source, topics
        self.slot = self.first = source.end  # what the server holds as confirmed; where the slot began
        self.stored: bytes | None = None
        self.heartbeats: list[bytes] = []
        self.written = {topic: len(source.expected[topic]) for topic in TOPICS.values()}
        self._skipped = dict(self.written)  # changes no stream brings: before the slot, or lost to a resync
        self.asked: list[tuple[bytes, Name, set[int]]] = []  # keys to be sent again: from which position on
        self.complete: dict[Name, bytes] = {}  # since when a table's topic holds all of it
        self.run: Run | None = None
        self._open: tuple[Transaction, Assembly] | None = None

    # the process

    def start(self) -> bool:
        """Fences, reads progress, compares, skips."""
        if self.run is not None:
            return False
        self._fence()
        progress = self._progress()
        assert self.slot <= progress.end_lsn, "the slot was told more than progress says"
        check_gap(self._slot(self.slot), progress, SYSTEM, CONFIG.postgres)
        self._place(progress)
        self.run = Run(self.source, progress, self.slot)
        return True

    def _progress(self) -> Progress:
        if self.stored is None:
            return first_progress(CONFIG, SYSTEM, self.first, epoch=1)
        return decode_progress(self.stored)

    def _slot(self, confirmed: int) -> Slot:
        return Slot(CONFIG.postgres.slot, CONFIG.postgres.plugin, False, "reserved", confirmed, 0, None, "db")

    def _fence(self) -> None:
        if self._open is not None:
            self._open[0].abort()
            self._open = None
        self.topics.begin()

    def _place(self, progress: Progress) -> None:
        """Where in the changes expected progress stands; exactly where we had come to, if transactions are whole."""
        for topic, at in self.written.items():
            found = bisect_right(self.source.expected[topic], progress.position.encode(), key=lambda change: change[0])
            found = max(found, self._skipped[topic])
            assert self.topics.repeats or found == at, "progress does not cover what is written"
            self.written[topic] = found

    def crash(self) -> bool:
        """SIGKILL: an undecided transaction stays open until the next start."""
        alive, self.run = self.run is not None, None
        return alive

    def feed(self, events: int) -> bool:
        """The next events of the stream, as long as there is room."""
        run = self.run
        if run is None:
            return False
        fed = False
        log = self.source.log
        while events and run.at < len(log) and not run.assembler.full:
            transaction = log[run.at].events
            run.assembler.add(transaction[run.event])
            run.event += 1
            if run.event == len(transaction):
                run.at, run.event = run.at + 1, 0
            events, fed = events - 1, True
        return fed

    def take(self) -> bool:
        """A chunk to be written: one is under way, and the next is prepared when it is full."""
        run = self.run
        if run is None or not run.assembler.ready or len(run.taken) >= (2 if run.assembler.full else 1):
            return False
        run.taken.append(run.assembler.take())
        return True

    def write(self) -> bool:
        """Everything is sent, nothing decided."""
        if self.run is None or not self.run.taken or self._open is not None:
            return False
        chunk = self.run.taken.popleft()
        self._open = Transaction(self.topics, chunk), chunk
        return True

    def decide(self, how: str) -> bool:
        """`commit`; `doubt`: it commits but the reader dies before it knows; `lost`: it dies before it commits."""
        if self.run is None or self._open is None:
            return False
        transaction, chunk = self._open
        if how == "lost":
            if self.topics.repeats:  # no transaction holds back what is sent; progress is not
                self._open = None
                transaction.commit()
            return self.crash()
        self._open = None
        transaction.commit()
        self._stored(transaction, chunk)
        if how == "doubt":
            return self.crash()
        for offer in chunk.offers:
            offer.answer(True)
        assert chunk.progress is not None
        if self.run.assembler.proof.given:
            self.slot = max(self.slot, chunk.progress.end_lsn)
        return True

    def _stored(self, transaction: Transaction, chunk: Assembly) -> None:
        progress = chunk.progress
        assert progress is not None
        self.stored = encode_progress(progress)
        if chunk.heartbeat is not None:
            self.heartbeats.append(encode_heartbeat(chunk.heartbeat, transaction.ends))
        self._compare(chunk, progress.position.encode())
        for name in NAMES:
            state = progress.snapshots.get(".".join(name))
            if state is not None and state.done and name not in self.complete:
                self.complete[name] = Position(progress.epoch, self.source.end, MAX_ORDINAL).encode()

    def _compare(self, chunk: Assembly, position: bytes) -> None:
        """Every change once, in order, with its key, and progress right behind the last."""
        for topic, records in chunk.records.items():
            expected, at = self.source.expected[topic], self.written[topic]
            for key, value, _timestamp, headers in records:
                if value is None or key == SWEEP_KEY or b'"snapshot":"true"' in value:
                    continue
                found = headers[0][1], None if key == TRUNCATE_KEY else key, value[OP].decode()
                assert found == expected[at], "a change is missing, doubled or out of order"
                at += 1
            self.written[topic] = at
        for topic, at in self.written.items():
            expected = self.source.expected[topic]
            assert at == len(expected) or expected[at][0] > position, "progress is ahead of what is written"
            assert at <= self._skipped[topic] or expected[at - 1][0] <= position, "progress is behind what is written"

    # the server

    def go_back(self, share: float) -> bool:
        """A crash of the server: a slot's position is durable only now and then."""
        self.crash()
        self.slot = int(self.first + (self.slot - self.first) * share)
        return True

    def resync(self) -> bool:
        """What was not delivered is lost; `cdc resync` makes a new epoch."""
        self.crash()
        self._fence()
        self.source.hidden = None  # a slot is made once what runs has ended
        old = None if self.stored is None else decode_progress(self.stored)
        self.source.epoch = epoch = old.epoch + 1 if old else 1
        self.slot = self.first = self.source.end
        progress = first_progress(CONFIG, SYSTEM, self.first, epoch=epoch)
        states = {".".join(name): SnapshotState() for name in NAMES}
        self.stored = encode_progress(msgspec.structs.replace(progress, snapshots=states))
        self.written = {topic: len(self.source.expected[topic]) for topic in TOPICS.values()}
        self._skipped = dict(self.written)
        self.complete.clear()
        self.asked.clear()
        return True
