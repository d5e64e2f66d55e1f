"""What one Kafka transaction carries, and how it is cut into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from cdc.errors import RecordError
from cdc.kafka.block import Block, Record
from cdc.kafka.partitioner import partitions
from cdc.kafka.progress import Progress
from cdc.position import Position

Outgoing = Record  # key, value, timestamp in ms, headers
Put = Callable[[int, Outgoing], None]


class Packer(NamedTuple):
    """The compiled ways into batches: of records, and of a block."""

    spread: Callable[[Sequence[Outgoing], list[Any], Put], None]
    pack: Callable[[Block, list[Any], Put], None]


class Heartbeat(NamedTuple):
    """The source's commit time (µs since the Unix epoch) and the position of a heartbeat."""

    ts_us: int
    position: Position


class Chunk:
    """Records by topic in the order of the source, and what is true once they are durable: progress, a heartbeat.
    `blocks` are many records each, by how many of `records` come before."""

    __slots__ = ("blocks", "count", "heartbeat", "markers", "nbytes", "progress", "records")

    def __init__(self) -> None:
        self.records: dict[str, list[Outgoing]] = {}
        self.markers: dict[str, list[int]] = {}
        self.blocks: dict[str, list[tuple[int, Block]]] = {}
        self.progress: Progress | None = None
        self.heartbeat: Heartbeat | None = None
        self.count = 0
        self.nbytes = 0

    def add(
        self, topic: str, key: bytes, value: bytes | None, timestamp_ms: int, headers: list[tuple[str, bytes]]
    ) -> None:
        """One record; its key decides the partition."""
        records = self.records.get(topic)
        if records is None:
            records = self.records[topic] = []
        records.append((key, value, timestamp_ms, headers))
        self.count += 1
        self.nbytes += len(key) + (len(value) if value is not None else 0)

    def extend(self, topic: str, records: list[Outgoing], nbytes: int) -> None:
        """Many at once; `nbytes` of keys and values."""
        self.records.setdefault(topic, []).extend(records)
        self.count += len(records)
        self.nbytes += nbytes

    def put(self, topic: str, block: Block) -> None:
        """A block, behind all that was added before and ahead of all after."""
        self.blocks.setdefault(topic, []).append((len(self.records.setdefault(topic, [])), block))
        self.count += len(block.rows)
        self.nbytes += block.nbytes

    def mark(
        self, topic: str, key: bytes, value: bytes | None, timestamp_ms: int, headers: list[tuple[str, bytes]]
    ) -> None:
        """A marker: the same record in every partition, behind all that was added before and ahead of all after."""
        self.add(topic, key, value, timestamp_ms, headers)
        self.markers.setdefault(topic, []).append(len(self.records[topic]) - 1)

    def drop(self) -> None:
        """Lets go of records and blocks, once they are in batches."""
        self.records.clear()
        self.blocks.clear()

    def __bool__(self) -> bool:
        return bool(self.count or self.progress or self.heartbeat)


class Batches:
    """The batches of one topic, a list a partition, in order; a record that fills one opens the next.

    `packer` fills batches that are the compiled ones (`batch.py`), if `create` makes those."""

    def __init__(
        self, topic: str, count: int, create: Callable[[], Any], limit: int, packer: Packer | None = None
    ) -> None:
        self.topic = topic
        self._packer = packer
        self._create = create
        self._limit = limit
        self._sealed: list[list[Any]] = [[] for _ in range(count)]
        self._open: list[Any] = [None] * count

    def fill(
        self, records: Sequence[Outgoing], markers: Sequence[int], blocks: Sequence[tuple[int, Block]] = ()
    ) -> None:
        """Appends all records, the marked ones to every partition, and each block behind as many records as it says.
        Raises RecordError `too_large`."""
        start = 0
        for index, block in sorted([*blocks, *((index, None) for index in markers)], key=lambda stop: stop[0]):
            self._append(records[start:index])
            start = index
            if block is not None:
                self._unfold(block)
                continue
            for partition in range(len(self._open)):
                self._put(partition, records[index])
            start += 1
        self._append(records[start:] if start else records)
        for partition in range(len(self._open)):
            self._seal(partition)

    def compress(self) -> None:
        """Ahead of the sending, in any thread."""
        for partition in self._sealed:
            for batch in partition:
                batch.compress()

    def _unfold(self, block: Block) -> None:
        if self._packer is not None:
            self._packer.pack(block, self._open, self._put)
        else:
            self._append(list(block.records()))

    def _append(self, records: Sequence[Outgoing]) -> None:
        batches = self._open
        if self._packer is not None:
            self._packer.spread(records, batches, self._put)
            return
        for partition, record in zip(partitions([r[0] for r in records], len(batches)), records, strict=True):
            batch = batches[partition]
            key, value, timestamp, headers = record
            if batch is None or batch.append(timestamp=timestamp, key=key, value=value, headers=headers) is None:
                self._put(partition, record)

    def _put(self, partition: int, record: Outgoing) -> None:
        """Into the open batch, or a new one when it is full: an empty batch takes any one record."""
        key, value, timestamp, headers = record
        batch = self._open[partition]
        if batch is None or batch.append(timestamp=timestamp, key=key, value=value, headers=headers) is None:
            self._seal(partition)
            batch = self._open[partition] = self._create()
            batch.append(timestamp=timestamp, key=key, value=value, headers=headers)

    def _seal(self, partition: int) -> None:
        batch = self._open[partition]
        if batch is None:
            return
        if batch.size() > self._limit:
            raise RecordError(
                "too_large",
                f"a record for {self.topic} has {batch.size()} bytes, more than the limit of {self._limit}",
                hint="raise [kafka] max_record_bytes and the topic's max.message.bytes, or exclude the large column",
            )
        batch.close()  # a closed batch goes out at once, an open one would linger
        self._sealed[partition].append(batch)
        self._open[partition] = None

    def rounds(self) -> Iterator[tuple[int, Any]]:
        """`(partition, batch)`: the first of every partition, then the second, …, so that a request carries many."""
        for turn in range(max(map(len, self._sealed), default=0)):
            for partition, batches in enumerate(self._sealed):
                if turn < len(batches):
                    yield partition, batches[turn]
