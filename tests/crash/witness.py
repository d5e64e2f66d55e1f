"""A read_committed consumer that reads all topics all the while, and believes nothing.

Every record is checked as it comes: order in its partition, versions of its key. What came since the last check is
kept for comparing with the journal, what remains of each topic for comparing with PostgreSQL.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any

import msgspec
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from cdc.config import Config
from cdc.envelope import MARKER_KEYS, ChangeEvent, decode_event
from cdc.errors import ConnectError
from cdc.kafka.offsets import open_consumer
from cdc.kafka.progress import Progress, decode_progress
from tests.comparison import Record, compact
from tests.crash.invariants import Change, Journaled, Key, complete, in_order, sessions_in_order, version_grows
from tests.waiting import until

POLL_MS = 100
_SESSION = re.compile(r"(?P<session>\w+):(?P<number>\d+)")


class _Row(msgspec.Struct):
    id: int | str
    version: int
    who: str


class _Id(msgspec.Struct):
    id: int | str


_ROW = msgspec.json.Decoder(_Row)
_ID = msgspec.json.Decoder(_Id)


class Witness:
    """`progress` is the newest committed record of it; `held` what remains, table → key → record."""

    def __init__(self, config: Config, tables: Collection[str]) -> None:
        self.config = config
        self.progress: Progress | None = None
        self.held: dict[str, dict[bytes, Record]] = {table: {} for table in tables}
        self.offsets: dict[TopicPartition, int] = {}  # the newest record's
        self.records = 0
        self._next: dict[TopicPartition, int] = {}
        self._topics = {config.kafka.table_topic("public", table): table for table in tables}
        self._last: dict[TopicPartition, Record] = {}
        self._versions: dict[Key, int] = {}
        self._consumer: Any = None
        self.clear()

    def clear(self) -> None:
        """Forgets what came since the last check."""
        self._seen: Counter[Change] = Counter()
        self._commits: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))

    async def run(self) -> None:
        """Reads for ever; a broker that is away is waited for. Raises Violation."""
        while True:
            try:
                await self._read()
            except (KafkaError, ConnectError):
                self._consumer = None
                await asyncio.sleep(0.2)  # the broker starts

    async def _read(self) -> None:
        """One connection's life; it goes on where the last one was."""
        async with open_consumer(self.config.kafka) as self._consumer:
            await until(self._there, "the topics", 60)
            self._consumer.assign(self._places())
            for place, offset in self._next.items():
                self._consumer.seek(place, offset)
            while True:
                for place, messages in (await self._consumer.getmany(timeout_ms=POLL_MS)).items():
                    for message in messages:
                        self.see(place, message)
                        self._next[place] = message.offset + 1

    async def _there(self) -> bool:
        known: set[str] = await self._consumer.topics()
        return {place.topic for place in self._places()} <= known

    def _places(self) -> list[TopicPartition]:
        partitions = range(self.config.kafka.partitions)
        data = [TopicPartition(topic, number) for topic in self._topics for number in partitions]
        return [*data, TopicPartition(self.config.kafka.progress_topic, 0)]

    def see(self, place: TopicPartition, message: Any) -> None:
        """The next record. Raises Violation."""
        if place.topic == self.config.kafka.progress_topic:
            self.progress = decode_progress(message.value)
            return
        self.records += 1
        record = Record(place.partition, message.offset, message.key, message.value, dict(message.headers))
        in_order(self._last.get(place), record)
        self._last[place], self.offsets[place] = record, message.offset
        table = self._topics[place.topic]
        compact(self.held[table], record)
        if record.value is not None and record.key not in MARKER_KEYS:
            self._note(table, record.key, decode_event(record.value))

    def _note(self, table: str, key: bytes, event: ChangeEvent) -> None:
        if event.op == "d":
            if event.source.snapshot == "true":
                return  # somebody asked for a key that has no row
            self._seen[Change(Key(table, str(_ID.decode(key).id)), None)] += 1
            return
        row = _ROW.decode(event.after)
        name = Key(table, str(row.id))
        again = event.op == "r"
        version_grows(name, self._versions.get(name, -1), row.version, again=again)
        self._versions[name] = row.version
        if not again:
            self._seen[Change(name, row.version)] += 1
            if found := _SESSION.fullmatch(row.who):
                self._commits[found["session"]][int(found["number"])].add(event.source.lsn)

    async def current_progress(self) -> Progress | None:
        """Not older than the call."""
        place = TopicPartition(self.config.kafka.progress_topic, 0)
        await self._reached([place])
        return self.progress

    async def caught_up(self, lsn: int, seconds: float) -> None:
        """Returns once progress is at `lsn`, all snapshots and backfills done, and all records up to there are seen."""

        def done() -> bool:
            progress = self.progress
            return (
                progress is not None
                and progress.commit_lsn >= lsn
                and len(progress.snapshots) == len(self._topics)
                and all(state.done for state in progress.snapshots.values())
                and all(state.ended for state in progress.backfills.values())
            )

        await until(done, f"progress up to {lsn}", seconds)
        await self._reached(self._places())

    async def _reached(self, places: list[TopicPartition]) -> None:
        """Raises KafkaError when the broker is away."""
        await until(lambda: self._consumer is not None and set(places) <= self._consumer.assignment(), "a witness", 60)
        consumer = self._consumer
        ends = await consumer.end_offsets(places)
        for place, end in ends.items():
            while self._consumer is consumer and await consumer.position(place) < end:
                await asyncio.sleep(0.01)  # its task reads on
        if self._consumer is not consumer:
            await self._reached(places)

    def check(self, journal: Journaled, *, gap: bool) -> None:
        """Compares what came with what was committed since the last check. Raises Violation."""
        complete(journal.acknowledged, journal.doubtful, self._seen, gap=gap)
        sessions_in_order(self._commits)
