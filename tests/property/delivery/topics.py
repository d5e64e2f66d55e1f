"""The model's Kafka: partitions of records, transactions that commit or abort, a stable end, and compaction."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

from aiokafka import ConsumerRecord

from cdc.envelope import MARKER_KEYS, POSITION_HEADER
from cdc.kafka.chunk import Batches, Chunk
from tests.property.delivery.source import TOPICS

COUNTS = dict(zip(TOPICS.values(), (3, 2), strict=True))  # partitions
Place = tuple[str, int]
PLACES: list[Place] = [(topic, partition) for topic, count in COUNTS.items() for partition in range(count)]


class _Batch:
    """Stands for aiokafka's builder: it takes a few records."""

    def __init__(self) -> None:
        self.records: list[tuple[int, bytes, bytes | None, Any]] = []

    def append(self, *, timestamp: int, key: bytes, value: bytes | None, headers: Any) -> object | None:
        if len(self.records) == 4:
            return None
        self.records.append((timestamp, key, value, headers))
        return self

    def size(self) -> int:
        return len(self.records)

    def close(self) -> None:
        pass


@dataclass
class Log:
    """One partition, its records by offset. `end` counts aborted records and the marks of transactions too."""

    records: list[ConsumerRecord[bytes, bytes]] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    end: int = 0
    stable: int = 0
    last: bytes = b""  # position of the newest committed record

    def read(self, start: int, most: int) -> tuple[list[ConsumerRecord[bytes, bytes]], int]:
        """Committed records from an offset on, and where the consumer stands then."""
        at = bisect_left(self.offsets, start)
        found = self.records[at : at + most]
        whole = at + most >= len(self.offsets)
        return found, max(start, self.stable if whole else self.offsets[at + most])

    def compact(self, clean: int, removable: int) -> None:
        """Keeps each key's last record below `clean`; tombstones below `removable` go too."""
        cut = bisect_left(self.offsets, clean)
        last = {record.key: record.offset for record in self.records[:cut]}
        kept = [
            record
            for record in self.records[:cut]
            if last[record.key] == record.offset and (record.value is not None or record.offset >= removable)
        ]
        self.records[:cut] = kept
        self.offsets[:cut] = [record.offset for record in kept]


class Transaction:
    """What a chunk wrote and is not decided yet; readers of committed records stop before it."""

    def __init__(self, topics: Topics, chunk: Chunk) -> None:
        self._topics = topics
        self._written: dict[Place, list[ConsumerRecord[bytes, bytes]]] = {}
        self.ends: dict[str, list[int]] = {topic: list(ends) for topic, ends in topics.ends.items()}
        for topic, records in chunk.records.items():
            batches = Batches(topic, COUNTS[topic], _Batch, 10)
            batches.fill(records, chunk.markers.get(topic, ()), chunk.blocks.get(topic, ()))
            for partition, batch in batches.rounds():
                self._write((topic, partition), batch.records)

    def _write(self, place: Place, records: list[tuple[int, bytes, bytes | None, Any]]) -> None:
        log = self._topics.logs[place]
        written = self._written.setdefault(place, [])
        for timestamp, key, value, headers in records:
            written.append(ConsumerRecord(*place, log.end, timestamp, 0, key, value, None, 0, 0, tuple(headers)))
            log.end += 1
        self.ends[place[0]][place[1]] = log.end

    def commit(self) -> None:
        """Visible from now on."""
        for place, records in self._written.items():
            log = self._topics.logs[place]
            for record in records:
                self._check(log, record)
            log.records += records
            log.offsets += [record.offset for record in records]
        self._close()
        self._topics.ends = self.ends

    def _check(self, log: Log, record: ConsumerRecord[bytes, bytes]) -> None:
        position = dict(record.headers)[POSITION_HEADER]
        if not self._topics.repeats:
            again = position == log.last and record.value is None
            assert again or position > log.last, "a partition holds a record twice, or out of order"
        log.last = max(log.last, position)

    def abort(self) -> None:
        """Never visible."""
        self._close()

    def _close(self) -> None:
        for place in self._written:
            log = self._topics.logs[place]
            log.end += 1  # the mark
            log.stable = log.end


class Topics:
    """All partitions. `repeats`: the writer works at least once, without transactions."""

    def __init__(self, *, repeats: bool) -> None:
        self.repeats = repeats
        self.logs: dict[Place, Log] = {place: Log() for place in PLACES}
        self.ends: dict[str, list[int]] = {}
        self.begin()

    def begin(self) -> None:
        """A writer starts: it learns the stable ends."""
        self.ends = {topic: [self.logs[topic, p].stable for p in range(count)] for topic, count in COUNTS.items()}

    def compacted(self, topic: str) -> dict[bytes, ConsumerRecord[bytes, bytes]]:
        """What a replay from the beginning is to yield: each key's last record, less what is deleted or marked gone."""
        held: dict[bytes, ConsumerRecord[bytes, bytes]] = {}
        below = b""
        for (name, _partition), log in self.logs.items():
            for record in log.records if name == topic else ():
                if record.key in MARKER_KEYS:
                    assert record.value is not None
                    below = max(below, record.value.split(b'"below":"', 1)[1][:32])
                elif record.key not in held or position_of(record) >= position_of(held[record.key]):
                    held[record.key or b""] = record
        return {
            key: record
            for key, record in held.items()
            if record.value is not None and not record.value.startswith(b'{"op":"d"') and position_of(record) >= below
        }


def position_of(record: ConsumerRecord[bytes, bytes]) -> bytes:
    """From the headers."""
    position: bytes = record.headers[0][1]
    return position
