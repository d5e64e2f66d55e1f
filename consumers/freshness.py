"""How fresh a store is: heartbeats say up to which offsets the topics reach at a source time; reached means fresh.

A heartbeat is `{"ts_us", "position", "ends": {topic: [end offset a partition]}}` under the source's name. Once every
partition of ours has been applied up to its end, everything that committed in PostgreSQL until `ts_us` is in the
store. The position here never moves backwards, and stands still when anything on the way stands still; the time is
that of the newest position, so that a clock that was ahead and is set right hides no lag afterwards.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Annotated

import msgspec
from aiokafka.errors import KafkaError

from cdc import log, metrics
from cdc.config import Config
from cdc.errors import MALFORMED, DecodeError
from cdc.position import decode_position
from consumers.batches import Message
from consumers.store import Partition
from consumers.tail import follow, tail

LOG = log.get(__name__)

PENDING = 1024  # heartbeats kept that are not reached yet: half an hour at one in 2 s, beyond that thinned out
LOOK_BACK = 1000  # records of the heartbeat topic read at start: the newest are among them, compacted or not
LOOK_SECONDS = 0.02  # how often a caller that waits for a position looks again


class Heartbeat(msgspec.Struct, frozen=True):
    """One heartbeat; `position` is the 32-digit wire form, `ts_us` microseconds since 1970 of the source's clock."""

    ts_us: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
    position: str
    ends: dict[str, list[int]]

    def reached(self, applied: Mapping[Partition, int]) -> bool:
        """True when each of the partitions in `applied` is at or past its end."""
        for (topic, partition), offset in applied.items():
            ends = self.ends.get(topic, [])
            if partition < len(ends) and offset < ends[partition]:
                return False
        return True

    def outruns(self, newer: Heartbeat) -> bool:
        """True when a newer one saw a log end earlier: ours speaks of a log that is no more."""
        return any(
            before > now
            for topic, ends in self.ends.items()
            for before, now in zip(ends, newer.ends.get(topic, ()), strict=False)
        )

    def beyond(self, known: Collection[str]) -> list[str]:
        """Topics with records that are not among the known ones."""
        return [topic for topic, ends in self.ends.items() if any(ends) and topic not in known]


_HEARTBEAT = msgspec.json.Decoder(Heartbeat)


def decode_heartbeat(value: bytes) -> Heartbeat:
    """One record of the heartbeat topic. Raises DecodeError."""
    try:
        heartbeat = _HEARTBEAT.decode(value)
    except MALFORMED as error:
        raise DecodeError(f"not a heartbeat: {error}", hint="is the topic shared with another program?") from error
    decode_position(heartbeat.position)
    return heartbeat


class Freshness:
    """A process's view: `at` (Unix seconds, source clock) and `position` up to which its partitions are applied."""

    def __init__(self, config: Config, store: str) -> None:
        self._config = config
        self._store = store
        self._pending: list[Heartbeat] = []
        self._shown = False
        self.at: float | None = None
        self.position = b""
        self.newest = b""  # of any record applied; others below it may still be missing

    def age(self) -> float | None:
        """Seconds since the source time the store is fresh up to; never negative, whatever the clocks say."""
        return None if self.at is None else max(0.0, time.time() - self.at)

    def heard(self, heartbeat: Heartbeat) -> None:
        """Keeps a heartbeat until it is reached; too many are thinned out, the oldest and the newest stay."""
        if self._pending and self._pending[-1].outruns(heartbeat):
            self._pending = [other for other in self._pending if not other.outruns(heartbeat)]
        self._pending.append(heartbeat)
        if len(self._pending) > PENDING:
            del self._pending[1:-1:2]

    def forget(self) -> None:
        """The store lost its data: it is fresh up to nothing until the next heartbeat is reached. The metric ages."""
        self.at, self.position, self.newest = None, b"", b""

    def applied(self, position: bytes) -> None:
        """A record was applied; the newest one is kept."""
        self.newest = max(self.newest, position)

    def reached(self, applied: Mapping[Partition, int], topics: Callable[[str], bool], known: set[str]) -> bool:
        """Moves on to the newest heartbeat reached. False when one speaks of a topic of ours not yet `known`."""
        complete = True
        while self._pending:
            first = self._pending[0]
            if any(topics(topic) for topic in first.beyond(known)):
                complete = False
                break
            if not applied or not first.reached(applied):
                break
            self._move(self._pending.pop(0))
        if not applied:
            self._hide()
        return complete

    def _move(self, heartbeat: Heartbeat) -> None:
        position = heartbeat.position.encode()
        if position < self.position:
            return
        self.at, self.position = heartbeat.ts_us / 1e6, position
        self._shown = True
        metrics.STORE_APPLIED.labels(self._store).set(self.at)
        metrics.STORE_WATERMARK.labels(self._store).set(decode_position(self.position).commit_lsn)

    def _hide(self) -> None:
        """A process that owns no partition says nothing about the store."""
        if self._shown:
            metrics.STORE_APPLIED.remove(self._store)
            metrics.STORE_WATERMARK.remove(self._store)
            self._shown = False

    async def listen(self) -> None:
        """Reads heartbeats for ever; Kafka being away is waited out, anything else is raised."""
        await follow(self._read, self._waiting)

    def _waiting(self, error: KafkaError) -> None:
        LOG.info("waiting for heartbeats", topic=self._config.kafka.heartbeat_topic, reason=str(error))

    async def _read(self) -> None:
        kafka = self._config.kafka
        async with tail(kafka, kafka.heartbeat_topic) as (consumer, partition, end):
            consumer.seek(partition, max(0, end - LOOK_BACK))
            while True:
                for messages in (await consumer.getmany(timeout_ms=1000)).values():
                    for message in messages:
                        self._hear(message)

    def _hear(self, message: Message) -> None:
        if message.value is not None and message.key == self._config.source_name.encode():
            self.heard(decode_heartbeat(message.value))

    async def wait_for(
        self, position: bytes, ends: Callable[[], Awaitable[Mapping[Partition, int]]], applied: Mapping[Partition, int]
    ) -> None:
        """Returns once everything up to `position` is applied; the caller bounds the time.

        Without waiting for a heartbeat: as soon as any record at or after `position` is applied, everything before it
        is in Kafka, because transactions arrive in order; then each partition only has to reach its present end. `ends`
        are those of the logs, open transactions included: the marks that commit one come to its partitions one by one,
        so that readers of committed records may see it in one partition and still end before it in another.
        """
        while self.position < position:
            if self.newest >= position:
                target = await ends()
                while self.position < position and any(applied.get(p, 0) < end for p, end in target.items()):
                    await asyncio.sleep(LOOK_SECONDS)
                return
            await asyncio.sleep(LOOK_SECONDS)
