"""Reading one of our own small topics to its end and on, for as long as the process lives: heartbeats, dead letters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError

from cdc.config import Kafka
from cdc.ending import look
from cdc.waiting import Waiting
from consumers.connection import disconnect
from consumers.retry import MOST_SECONDS, Action, delays, policy_for


class Tail(NamedTuple):
    """A committed reader that stands at the beginning of the topic's only partition, which `end`s there by now."""

    consumer: AIOKafkaConsumer
    partition: TopicPartition
    end: int


@asynccontextmanager
async def tail(kafka: Kafka, topic: str) -> AsyncIterator[Tail]:
    """One connection's life. Raises KafkaError, UnknownTopicOrPartitionError while the topic is not there yet."""
    consumer = AIOKafkaConsumer(
        **kafka.client_options(),
        request_timeout_ms=int(kafka.request_timeout_seconds * 1000),
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    try:
        await consumer.start()
        if topic not in await consumer.topics():
            raise UnknownTopicOrPartitionError(f"{topic} is not there yet")
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        yield Tail(consumer, partition, (await consumer.end_offsets([partition]))[partition])
    finally:
        await disconnect(consumer)


async def follow(
    read: Callable[[], Awaitable[None]],
    waiting: Callable[[KafkaError], None],
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Runs `read`, one connection's life, for ever. Kafka being away is told to `waiting`, not at every try, and waited
    out, by `pause`; anything else is raised."""
    attempts, told = delays(), Waiting()
    while True:
        started = time.monotonic()
        try:
            await read()
        except KafkaError as error:
            if policy_for(error).action is not Action.WAIT:
                raise
            if time.monotonic() > started + MOST_SECONDS:
                attempts, told = delays(), Waiting()  # it had worked: a new failure starts with short waits
            if told.news(repr(error)):
                waiting(error)
        look()
        await pause(next(attempts))
