"""Reading a fixed stretch of topics, without a group or a trace: for rebuilds, verify, dead letters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from typing import NamedTuple

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from cdc.config import Config
from consumers.batches import Message
from consumers.logs import Connected
from consumers.partitions import FETCH_BYTES, POLL_RECORDS
from consumers.store import Offsets, Partition

POLL_MS = 1000  # nothing comes that long only when Kafka is slow; then it is asked again


class Span(NamedTuple):
    """Offsets of one partition: from `start` (None: the log's beginning) to before `end`."""

    start: int | None
    end: int


class Replayer(Connected):
    """A connection that reads spans of committed records. Use it as a context: `async with Replayer(config) as …`."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, "read_committed", fetch_max_bytes=FETCH_BYTES, max_poll_records=POLL_RECORDS)

    async def at_time(self, partitions: Collection[Partition], time_ms: int) -> dict[Partition, int]:
        """The first offset at or after a time (Unix ms), the end where there is none. Raises KafkaError."""
        found = await self._consumer.offsets_for_times({TopicPartition(*p): time_ms for p in partitions})
        ends = await self.ends(partitions)
        return {tuple(p): ends[tuple(p)] if at is None else at.offset for p, at in found.items()}

    async def read(self, spans: Mapping[Partition, Span]) -> AsyncIterator[tuple[Partition, list[Message], int]]:
        """`(partition, records, offset reached)` until every span is read; order holds within a partition."""
        beginnings = await self.starts([p for p, span in spans.items() if span.start is None])
        starts = {p: beginnings[p] if span.start is None else span.start for p, span in spans.items()}
        left = {TopicPartition(*p): spans[p].end for p, start in starts.items() if start < spans[p].end}
        self._consumer.assign(list(left))
        for partition in left:
            self._consumer.seek(partition, starts[tuple(partition)])
        while left:
            polled = await self._consumer.getmany(*left, timeout_ms=POLL_MS)
            for partition, end in list(left.items()):
                reached = await self._consumer.position(partition)
                messages = polled.get(partition, [])
                if reached >= end:
                    messages = [message for message in messages if message.offset < end]
                    self._consumer.pause(partition)
                    del left[partition]
                if messages:
                    yield tuple(partition), messages, min(reached, end)


async def replay(config: Config, spans: Mapping[Partition, Span]) -> AsyncIterator[list[Message]]:
    """The records of some spans, connection included."""
    async with Replayer(config) as replayer:
        async for _partition, messages, _reached in replayer.read(spans):
            yield messages


async def span_ends(config: Config, topics: Collection[str]) -> Offsets:
    """The present end of every partition of these topics; those that do not exist are left out. Raises KafkaError."""
    admin = AIOKafkaAdminClient(**config.kafka.client_options())
    try:
        await admin.start()
        existing = set(await admin.list_topics()) & set(topics)
        described = await admin.describe_topics(sorted(existing)) if existing else []
    finally:
        await admin.close()
    partitions = [(topic["topic"], part["partition"]) for topic in described for part in topic["partitions"]]
    async with Replayer(config) as replayer:
        return await replayer.ends(partitions)
