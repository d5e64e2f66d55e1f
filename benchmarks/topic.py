"""Kafka as its readers see it: committed ends, and a count of what is really there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from benchmarks.measure import Sample
from cdc.config import Config, Kafka

LOOK_SECONDS = 0.02  # between two looks at the ends; of a run of seconds, below a percent
STILL_SECONDS = 1.0  # ends that have not moved for that long, with all rows below them, have stopped
POLL_MS = 500
PATIENCE_SECONDS = 300.0  # without a single new row: something is broken


@asynccontextmanager
async def committed_reader(config: Config) -> AsyncIterator[AIOKafkaConsumer]:
    """A read_committed consumer without a group."""
    consumer = AIOKafkaConsumer(
        **config.kafka.client_options(), isolation_level="read_committed", auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


async def arrival(
    config: Config, table: str, rows: int, look: Callable[[], Any], on_growth: Callable[[Sample], Any] | None = None
) -> Sample:
    """Waits until `rows` records of a table are readable; when the last one became so, and their count by reading.

    What is watched are the ends for readers of committed records, each told to `on_growth` when they moved. They count
    Kafka's own marks too, hence the count.
    """
    partitions = partitions_of(config, table)
    await exists(config, table, look)
    end, moved = 0, time.monotonic()
    async with committed_reader(config) as consumer:
        while True:
            look()
            now = sum((await consumer.end_offsets(partitions)).values())
            clock = time.monotonic()
            if now != end:
                end, moved = now, clock
                if on_growth is not None:
                    on_growth(Sample(moved, end))
            elif end >= rows and clock > moved + STILL_SECONDS:
                return Sample(moved, await count(consumer, partitions))
            elif clock > moved + PATIENCE_SECONDS:
                raise TimeoutError(f"the topic of {table} stands at {end} of {rows} rows")
            await asyncio.sleep(LOOK_SECONDS)


def partitions_of(config: Config, table: str) -> list[TopicPartition]:
    """Of a table's topic."""
    name = config.kafka.table_topic(*table.split("."))
    return [TopicPartition(name, number) for number in range(config.kafka.partitions)]


async def end(config: Config, table: str) -> int:
    """Offsets of a table's topic below which everything is committed, added up."""
    async with committed_reader(config) as consumer:
        return sum((await consumer.end_offsets(partitions_of(config, table))).values())


async def exists(config: Config, table: str, look: Callable[[], Any]) -> None:
    """Returns once the table's topic is there; `look` raises when nobody will make it."""
    topic = config.kafka.table_topic(*table.split("."))
    deadline = time.monotonic() + PATIENCE_SECONDS
    async with committed_reader(config) as consumer:
        while topic not in await consumer.topics():
            look()
            if time.monotonic() > deadline:
                raise TimeoutError(f"there is no topic {topic}")
            await asyncio.sleep(LOOK_SECONDS)


async def count(consumer: AIOKafkaConsumer, partitions: list[TopicPartition]) -> int:
    """Reads everything up to the present ends."""
    ends = await consumer.end_offsets(partitions)
    consumer.assign(partitions)
    found = 0
    while any([await consumer.position(p) < end for p, end in ends.items()]):
        found += sum(map(len, (await consumer.getmany(timeout_ms=POLL_MS)).values()))
    return found


async def plain(kafka: Kafka, name: str, partitions: int) -> None:
    """Makes a topic with the broker's defaults."""
    admin = AIOKafkaAdminClient(**kafka.client_options())
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, partitions, kafka.replication_factor)])
    finally:
        await admin.close()
