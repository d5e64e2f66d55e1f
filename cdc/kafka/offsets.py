"""Reading the log's ends, as committed readers see them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from cdc.config import Kafka
from cdc.kafka import failure

Ends = dict[str, list[int]]  # topic → the offset behind the last record, a partition


@asynccontextmanager
async def open_consumer(kafka: Kafka) -> AsyncIterator[Any]:
    """A started read_committed consumer of no group, which reads from the beginning. Raises ConnectError."""
    consumer = AIOKafkaConsumer(
        isolation_level="read_committed",
        enable_auto_commit=False,
        # not seek_to_beginning(): the default's jump to the end, begun by assign(), may come after it and win
        auto_offset_reset="earliest",
        request_timeout_ms=int(failure.CONNECT_SECONDS * 1000),
        **kafka.client_options(),
    )
    try:
        await failure.start(consumer, kafka, "connecting")
        yield consumer
    finally:
        await consumer.stop()


async def committed_ends(kafka: Kafka, partitions: Mapping[str, int]) -> Ends:
    """The last stable offset of every partition of the topics: everything below it is decided. Raises ConnectError."""
    if not partitions:
        return {}
    everything = [TopicPartition(topic, p) for topic, count in partitions.items() for p in range(count)]
    async with open_consumer(kafka) as consumer, failure.bounded(kafka, "reading the ends of the topics"):
        found = await consumer.end_offsets(everything)
    return {topic: [found[TopicPartition(topic, p)] for p in range(count)] for topic, count in partitions.items()}
