"""What the assembler makes and the reader takes: a chunk for Kafka, with what has to happen to it before and after."""

from __future__ import annotations

import asyncio
from collections import Counter

from cdc.kafka.chunk import Chunk
from cdc.metrics import READER_RECORDS
from cdc.source.fill import Hole
from cdc.source.rows import OP
from cdc.source.snapshot import TableSnapshot
from cdc.source.window import Chunk as SnapshotChunk
from cdc.trail import Transaction

TOMBSTONE = b"tombstone"  # the metric's label of a record without a value


class Offer:
    """A snapshot chunk that waits for its high message. `written` becomes True when durable, False to read it again."""

    def __init__(self, chunk: SnapshotChunk, snapshot: TableSnapshot, number: int) -> None:
        self.chunk, self.snapshot, self.number = chunk, snapshot, number
        self.written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def answer(self, written: bool) -> None:
        """To whoever waits; nobody does once the session is ending."""
        if not self.written.done():
            self.written.set_result(written)


class Assembly(Chunk):
    """A chunk and what has to happen to it besides: holes to fill before, offers to answer after."""

    __slots__ = ("holes", "offers", "oldest_us", "ops", "transactions")

    def __init__(self) -> None:
        super().__init__()
        self.holes: list[Hole] = []
        self.offers: list[Offer] = []
        self.ops: Counter[tuple[str, bytes]] = Counter()  # records by topic and op, for metrics
        self.oldest_us = 0
        self.transactions: list[Transaction] = []  # with records in here, where anybody wants to know them

    def noted(self, topic: str, value: bytes | None, count: int = 1) -> None:
        """So many records like this one are in the chunk."""
        self.ops[topic, TOMBSTONE if value is None else value[OP]] += count

    def tell(self, prefix: str) -> None:
        """Metrics, once the chunk is durable. `prefix` is that of the topics."""
        for (topic, op), count in self.ops.items():
            READER_RECORDS.labels(topic.removeprefix(f"{prefix}."), op.decode()).inc(count)
