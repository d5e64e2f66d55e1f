"""Records of many partitions in the one order of their positions.

Within a partition they come in that order, between partitions in any. What is known: once a progress record says that
everything up to a position is in the topics, all of it was written before that record became visible. So the logs'
ends asked after it (open transactions included) lie behind all of it, and whoever has read every partition up to its
end has everything up to that position and may hand it out in order.

Memory: of each partition what one poll brings, whatever the length of the stretch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence

from aiokafka import TopicPartition

from cdc import log
from cdc.config import Config
from consumers.batches import to_records
from consumers.logs import Connected
from consumers.store import Partition, Record

LOG = log.get(__name__)

POLL_MS = 50  # the marks that end a transaction come without a record, so nothing tells of them: they are looked for
POLL_RECORDS = 2000


class Ordered(Connected):
    """Committed records. Use it as a context, by one task."""

    def __init__(self, config: Config, after: bytes) -> None:
        super().__init__(config, "read_committed")
        self._held: dict[TopicPartition, deque[Record]] = {}
        self.last = after  # the position handed out last: what is not above it is skipped

    async def add(self, starts: Mapping[Partition, int]) -> None:
        """Partitions to be read from these offsets on, beside those it has."""
        if not starts:
            return
        new = {TopicPartition(*p): offset for p, offset in starts.items()}
        places = {p: await self._consumer.position(p) for p in self._held if p not in new} | new
        self._held |= {partition: deque() for partition in new}
        self._consumer.assign(list(places))
        for partition, offset in places.items():
            self._consumer.seek(partition, offset)

    async def until(
        self, frontier: bytes, ends: Mapping[Partition, int]
    ) -> AsyncGenerator[Sequence[tuple[str, Record]], None]:
        """Every record above `last` and at or below `frontier`, with its topic, in order; of one position the first
        only. `ends` lie behind all of them. Raises KafkaError."""
        while short := await self._short(frontier, ends):
            if empty := [partition for partition in short if not self._held[partition]]:
                await self._poll(empty)
            else:
                yield self._taken(min(self._held[partition][-1].position for partition in short))
        some = self._taken(frontier)
        self.last = max(self.last, frontier)
        yield some

    async def _short(self, frontier: bytes, ends: Mapping[Partition, int]) -> list[TopicPartition]:
        """Partitions that may still bring records up to the frontier."""
        found = []
        for partition, held in self._held.items():
            known = held and held[-1].position > frontier
            end = ends.get(tuple(partition), 0)
            if not known and await self._consumer.position(partition) < end:
                found.append(partition)
        return found

    async def _poll(self, partitions: Sequence[TopicPartition]) -> None:
        polled = await self._consumer.getmany(*partitions, timeout_ms=POLL_MS, max_records=POLL_RECORDS)
        for partition, messages in polled.items():
            records, foreign = to_records(messages)
            self._held[partition].extend(records)
            if foreign:
                LOG.info("records of another program are no events", topic=partition.topic, records=len(foreign))

    def _taken(self, bound: bytes) -> list[tuple[str, Record]]:
        """What is held at or below the bound, in order."""
        some: list[tuple[str, Record]] = []
        for partition, held in self._held.items():
            while held and held[0].position <= bound:
                some.append((partition.topic, held.popleft()))
        some.sort(key=lambda found: found[1].position)  # stable: a delete stays before its tombstone
        found = []
        for topic, record in some:
            if record.position > self.last:
                self.last = record.position
                found.append((topic, record))
        return found
