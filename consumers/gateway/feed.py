"""The changes as they come, for any number of clients: one reading of the topics for all that are up to date.

It reads while somebody listens, and begins where the topics are then. A client that comes from before that reads the
stretch up to there by itself and then joins: without a hole, because both go by position, and without a double, because
a position is handed out once. While Kafka is away clients wait; nothing is lost for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import NamedTuple

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from cdc import log
from cdc.config import Config
from cdc.ending import end
from cdc.errors import MALFORMED, CdcError, ConnectError, DecodeError, PreconditionError
from cdc.position import Position, decode_position
from consumers.freshness import LOOK_BACK
from consumers.gateway.changes import Change, change_of
from consumers.gateway.ordered import Ordered
from consumers.gateway.ring import Ring
from consumers.gateway.timeline import Timeline
from consumers.logs import Ends
from consumers.store import Partition, Record
from consumers.tail import follow, tail
from consumers.topics import TableTopics, table_partitions

LOG = log.get(__name__)

START_SECONDS = 5.0  # to be where the topics are: some requests to Kafka
REACH_SECONDS = 3.0  # a position that is in a store already comes to us within milliseconds
GONE = "a topic was made anew or cut, so that changes may be missing"


class CutError(CdcError):
    """What was asked for is no longer in the topics."""


class Some(NamedTuple):
    """Changes, and the position up to which there were no others."""

    changes: list[Change]
    reached: bytes


class _Progress(msgspec.Struct):
    """What of a progress record tells up to where the topics hold everything."""

    epoch: int
    commit_lsn: int = 0
    ordinal: int = 0


_PROGRESS = msgspec.json.Decoder(_Progress)


class Feed:
    """A context beside the server: its end ends all streams. A client's way: `claim`, `ring`, `begin`, `past`."""

    def __init__(self, config: Config, timeline: Timeline) -> None:
        self._config = config
        self._timeline = timeline
        self.topics = TableTopics(config.kafka.prefix, config.gateway.event_tables)
        self._clients = 0
        self._reading: asyncio.Task[None] | None = None
        self._ring: asyncio.Future[Ring] | None = None

    def claim(self) -> bool:
        """A place for one more client, to be given back by `release`; False when there is none."""
        if self._clients >= self._config.gateway.event_clients:
            return False
        self._clients += 1
        if self._reading is None or self._reading.done():
            self._ring = asyncio.get_running_loop().create_future()
            self._reading = asyncio.ensure_future(self._read_on(self._ring))
        return True

    def release(self) -> None:
        """The last one ends the reading."""
        self._clients -= 1
        if self._clients == 0:
            self._end("nobody listened")

    async def __aenter__(self) -> Feed:
        return self

    async def __aexit__(self, *_error: object) -> None:
        """The gateway stops."""
        reading = self._reading
        self._end("the gateway stops")
        if reading is not None:
            await end(reading)

    def _end(self, reason: str) -> None:
        ring, reading, self._ring, self._reading = self._ring, self._reading, None, None
        if ring is not None and ring.done() and not ring.cancelled() and ring.exception() is None:
            ring.result().close(reason)
        if reading is not None:
            reading.cancel()

    async def ring(self) -> Ring:
        """As soon as it stands at the topics' end. Raises ConnectError."""
        found = self._ring
        if found is not None:
            await asyncio.wait({found}, timeout=START_SECONDS)
        if found is None or not found.done() or found.cancelled():
            where = f"Kafka at {self._config.kafka.bootstrap}"
            raise ConnectError(f"{where} does not tell how far the topics are", hint="is it up, and did a reader run?")
        return found.result()

    async def begin(self, ring: Ring, after: bytes, seconds: float = REACH_SECONDS) -> Mapping[Partition, int] | None:
        """Where to read from for everything above a position; None when the ring has it all. Raises PreconditionError
        for one that is not there yet, CutError when something above it is there no more, ConnectError."""
        if after > ring.top:
            try:
                async with asyncio.timeout(min(seconds, REACH_SECONDS)):
                    await ring.reached(after)
            except TimeoutError as error:
                raise PreconditionError(
                    f"{decode_position(after)} is beyond the topics, which hold {decode_position(ring.top)}",
                    hint="name a position that an event, a search or a record has told",
                ) from error
        if after >= ring.floor:
            return None
        try:
            async with Ends(self._config) as logs:
                return await self._starts(logs, after, list(ring.ends))
        except KafkaError as error:
            raise ConnectError(f"Kafka does not tell where the topics begin: {type(error).__name__}") from error

    async def past(self, ring: Ring, after: bytes, starts: Mapping[Partition, int]) -> AsyncGenerator[Some, None]:
        """Everything above `after` up to where the ring takes over. Raises KafkaError."""
        async with Ordered(self._config, after) as records:
            known: set[Partition] = set()
            while ring.closed is None:
                top, ends = ring.sealed, ring.ends
                await records.add({place: starts.get(place, 0) for place in ends if place not in known})
                known |= ends.keys()
                async with aclosing(records.until(top, ends)) as found:
                    async for some in found:
                        yield Some(self._changes(some), records.last)
                if records.last >= ring.floor:
                    return

    # the one reading for all

    async def _read_on(self, found: asyncio.Future[Ring]) -> None:
        """Until it is cancelled; what ends it otherwise ends its clients."""
        reason = GONE
        try:
            await follow(lambda: self._read(found), lambda e: LOG.info("changes wait for Kafka", reason=str(e)))
        except OffsetOutOfRangeError as error:
            LOG.warning("the changes' topics are not what they were", reason=str(error))
        except (KafkaError, CdcError) as error:
            reason = f"the topics cannot be read: {type(error).__name__}"
            LOG.error("no changes for clients", reason=str(error))  # noqa: TRY400 -- told, with its reason
        finally:
            if found.done() and not found.cancelled():
                found.result().close(reason)
            else:
                found.cancel()

    async def _read(self, found: asyncio.Future[Ring]) -> None:
        """One connection's life. Raises KafkaError, DecodeError."""
        kafka = self._config.kafka
        async with tail(kafka, kafka.progress_topic) as (progress, place, end), Ends(self._config) as logs:
            top = await self._newest(progress, place, end)
            ring = found.result() if found.done() else Ring(top)
            known = await table_partitions(self._config, self.topics)
            async with Ordered(self._config, ring.top) as records:
                await records.add(await self._starts(logs, ring.top, known, cut=False))
                while True:
                    known += await self._add_new(logs, records, known)
                    ends = await logs.ends(known)
                    async for some in records.until(top, ends):
                        ring.add(self._changes(some))
                    ring.seal(top, ends)
                    if not found.done():
                        found.set_result(ring)
                    top = max(top, await self._next(progress))

    async def _newest(self, progress: AIOKafkaConsumer, place: TopicPartition, end: int) -> bytes:
        """Up to where the topics hold everything now, or, with no reader yet, as soon as one has said so."""
        progress.seek(place, max(0, end - LOOK_BACK))
        top = await self._next(progress)
        while await progress.position(place) < end:
            for messages in (await progress.getmany(timeout_ms=50)).values():
                top = max([top, *self._frontiers(messages)])
        return top

    async def _next(self, progress: AIOKafkaConsumer) -> bytes:
        """The newest of what came."""
        while True:
            polled = await progress.getmany(timeout_ms=1000)
            if found := [top for messages in polled.values() for top in self._frontiers(messages)]:
                return max(found)

    def _frontiers(self, messages: Sequence[object]) -> list[bytes]:
        name = self._config.source_name.encode()
        ours = [m for m in messages if m.key == name and m.value is not None]  # type: ignore[attr-defined]
        return [_frontier(ours[-1].value)] if ours else []  # type: ignore[attr-defined]

    async def _add_new(self, logs: Ends, records: Ordered, known: Sequence[Partition]) -> list[Partition]:
        """Topics that came meanwhile, from their beginning."""
        topics = {topic for topic, _number in known}
        if not any(topic in self.topics and topic not in topics for topic in await logs.topics()):
            return []
        new = [place for place in await table_partitions(self._config, self.topics) if place[0] not in topics]
        await records.add(dict.fromkeys(new, 0))
        return new

    async def _starts(
        self, logs: Ends, after: bytes, known: Sequence[Partition], *, cut: bool = True
    ) -> dict[Partition, int]:
        """Offsets with everything above `after` behind them. Raises CutError unless what was `cut` off is none of our
        business, KafkaError."""
        held = self._timeline.below(after)
        begins = await logs.starts(known)
        starts = {}
        for topic, number in known:
            offsets = held.get(topic, ())
            start = offsets[number] if number < len(offsets) else 0
            if cut and begins[topic, number] > start:
                raise CutError(
                    f"the topic {topic} begins behind {decode_position(after)}",
                    hint="begin anew, without `from`, and read the records as they are",
                )
            starts[topic, number] = max(start, begins[topic, number])
        return starts

    def _changes(self, records: Sequence[tuple[str, Record]]) -> list[Change]:
        """A value that is none of ours is among the stores' dead letters, and no event."""
        found = []
        for topic, record in records:
            try:
                found.append(change_of(".".join(self.topics.split(topic)), record))
            except DecodeError as error:
                LOG.warning("a record is no event", topic=topic, reason=error.message)
        return found


def _frontier(value: bytes) -> bytes:
    """Raises DecodeError."""
    try:
        found = _PROGRESS.decode(value)
        return Position(found.epoch, found.commit_lsn, found.ordinal).encode()
    except MALFORMED as error:
        raise DecodeError(
            f"not a progress record: {error}", hint="is the topic shared with another program?"
        ) from error
