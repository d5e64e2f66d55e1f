"""How far the topics were at which time of the source, and so how fresh a store with given offsets is.

Kept from the heartbeats (see `consumers.freshness`), which the gateway reads itself: a store's age is known from the
offsets the store holds, whether its consumer lives or not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from cdc import log
from cdc.config import Config
from cdc.errors import ConnectError
from cdc.position import decode_position, format_lsn
from consumers.freshness import LOOK_BACK, Heartbeat, decode_heartbeat
from consumers.store import Offsets, Partition
from consumers.tail import follow, tail
from consumers.topics import TableTopics

LOG = log.get(__name__)

KEPT = 1024  # half an hour at a heartbeat in 2 s; beyond that thinned out, the oldest and the newest stay
ANSWER_SECONDS = 3.0  # a healthy broker answers in milliseconds


class Place(NamedTuple):
    """How far a store is. `fresh_until`: Unix seconds by the source's clock up to which it holds everything; `lsn` and
    `position` (wire form) the same as WAL. None when it is older than every heartbeat kept, or none came yet."""

    fresh_until: float | None = None
    lsn: str | None = None
    position: str | None = None

    def age(self) -> float | None:
        """Seconds; never negative, whatever the clocks say."""
        return None if self.fresh_until is None else max(0.0, time.time() - self.fresh_until)


class Timeline:
    """Run `listen` beside what asks."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._topics = TableTopics(config.kafka.prefix, config.postgres.tables)
        self._heartbeats: list[Heartbeat] = []  # oldest first
        self._consumer: AIOKafkaConsumer | None = None
        self._came = asyncio.Event()

    def heard(self, heartbeat: Heartbeat) -> None:
        """Keeps it; those that speak of a log that is no more go."""
        kept = self._heartbeats
        if kept and kept[-1].outruns(heartbeat):
            kept[:] = [other for other in kept if not other.outruns(heartbeat)]
        kept.append(heartbeat)
        if len(kept) > KEPT:
            del kept[1:-1:2]
        self._came.set()

    async def listen(self) -> None:
        """For ever; Kafka being away is waited out."""
        await follow(self._read, lambda error: LOG.info("waiting for heartbeats", reason=str(error)))

    async def _read(self) -> None:
        kafka = self._config.kafka
        try:
            async with tail(kafka, kafka.heartbeat_topic) as (consumer, partition, end):
                self._consumer = consumer
                consumer.seek(partition, max(0, end - LOOK_BACK))
                while True:
                    for messages in (await consumer.getmany(timeout_ms=1000)).values():
                        for message in messages:
                            if message.value is not None and message.key == self._config.source_name.encode():
                                self.heard(decode_heartbeat(message.value))
        finally:
            self._consumer = None

    @property
    def newest(self) -> Heartbeat | None:
        """None before the first one."""
        return self._heartbeats[-1] if self._heartbeats else None

    def tables(self) -> list[str]:
        """`schema.table` of every topic that the newest heartbeat names."""
        found = self.newest.ends if self.newest else {}
        return sorted(".".join(self._topics.split(topic)) for topic in found if topic in self._topics)

    def partitions(self, tables: Collection[str]) -> list[Partition]:
        """Of the tables' topics, as the newest heartbeat knows them."""
        ends = self.newest.ends if self.newest else {}
        topics = [self._config.kafka.table_topic(*table.split(".", 1)) for table in tables]
        return [(topic, number) for topic in topics for number in range(len(ends.get(topic, ())))]

    def place(self, offsets: Offsets, tables: Collection[str]) -> Place:
        """Of a store with these offsets, in these tables."""
        applied = {partition: offsets.get(partition, 0) for partition in self.partitions(tables)}
        for heartbeat in reversed(self._heartbeats):
            if heartbeat.reached(applied):
                lsn = format_lsn(decode_position(heartbeat.position).commit_lsn)
                return Place(heartbeat.ts_us / 1e6, lsn, heartbeat.position)
        return Place()

    def before(self, moment: float) -> Mapping[str, list[int]]:
        """The topics' ends at the newest heartbeat before a moment (Unix seconds, source's clock); {} without one."""
        found = (beat.ends for beat in reversed(self._heartbeats) if beat.ts_us / 1e6 < moment)
        return next(found, {})

    def below(self, position: bytes) -> Mapping[str, list[int]]:
        """Ends of the topics below which every record is at or below a position (wire form); {} when none is known.

        A heartbeat's ends lie behind the whole chunk it travelled in, which the next heartbeat's position is above."""
        found = [beat.ends for beat in self._heartbeats if beat.position.encode() <= position]
        return found[-2] if len(found) > 1 else {}

    def past(self, lsn: int) -> bool:
        """Whether everything that committed below this LSN is in the topics."""
        return self.newest is not None and decode_position(self.newest.position).commit_lsn >= lsn

    async def passed(self, lsn: int) -> None:
        """Returns when it is so; the caller bounds the time."""
        while not self.past(lsn):
            self._came.clear()
            await self._came.wait()

    async def ping(self) -> None:
        """Returns when Kafka answers. Raises ConnectError."""
        await self._ends([(self._config.kafka.heartbeat_topic, 0)])

    async def ends(self, tables: Collection[str]) -> dict[Partition, int]:
        """Of the tables' topics, as Kafka says now. Raises ConnectError."""
        return await self._ends(self.partitions(tables))

    async def _ends(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        where, consumer = f"Kafka at {self._config.kafka.bootstrap}", self._consumer
        if consumer is None:
            raise ConnectError(f"{where} does not answer, or has no heartbeats yet", hint="start it, and `cdc reader`")
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                found = await consumer.end_offsets([TopicPartition(*place) for place in partitions])
        except (KafkaError, TimeoutError) as error:
            reason = f"{where} does not answer: {type(error).__name__}"
            raise ConnectError(reason, hint="`cdc doctor` says why") from error
        return {tuple(place): end for place, end in found.items()}
