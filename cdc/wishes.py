"""Who is to stand still: the reader or a store's consumer, because a person wants it.

Consumers do not talk to PostgreSQL, so a wish travels by Kafka: a compacted topic, the component as the key, the newest
wish as the value. Each process reads it from the beginning at its start, so that a wish outlives everybody, and follows
it. Until it was read once nobody knows, and whoever asks stands still.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal, NamedTuple, get_args

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, KafkaTimeoutError

from cdc import log, metrics
from cdc.config import Kafka
from cdc.ending import look
from cdc.errors import PreconditionError

LOG = log.get(__name__)

Component = Literal["reader", "redis", "faiss"]
COMPONENTS: tuple[Component, ...] = get_args(Component)
POLL_MS = 1000  # a poll returns at once when something comes
RETRY_SECONDS = 1.0  # while Kafka, or the topic, is away
WRITE_SECONDS = 10.0  # for one small record


class Wish(msgspec.Struct, frozen=True):
    """`paused`, or to go on; who wants it (`by`), since when (`at`, Unix seconds), and `why`, in a person's words."""

    paused: bool
    by: str
    at: float
    why: str = ""

    @property
    def said(self) -> str:
        """For a person."""
        return f"paused by {self.by}{f' ({self.why})' if self.why else ''}"


class _Log(NamedTuple):
    consumer: AIOKafkaConsumer
    partition: TopicPartition
    end: int


class Wishes:
    """Run `listen` beside the work. `component`: whose process this is, for its metric; None: it only tells. `heed` is
    called with each wish that comes, before the metric says so."""

    def __init__(
        self, kafka: Kafka, component: str | None = None, heed: Callable[[bool], None] = lambda _still: None
    ) -> None:
        self._kafka = kafka
        self._component = component
        self._heed = heed
        self._found: dict[str, Wish] = {}
        self._heard = asyncio.Event()
        self._still = False
        self.known = False

    async def listen(self) -> None:
        """For ever; what hinders it is told once, and tried again."""
        told = ""
        while True:
            try:
                await self._follow()
            except KafkaError as error:
                if not self.known and repr(error) != told:
                    LOG.info("waiting for the topic of wishes", topic=self._kafka.control_topic, reason=repr(error))
                    told = repr(error)
            look()
            await asyncio.sleep(RETRY_SECONDS)

    async def _follow(self) -> None:
        async with _open(self._kafka) as found:
            if found is None:
                self._hear({})  # no reader has made the topic yet: nobody can have wished anything
                return
            read: dict[str, Wish] = {}
            while True:
                await _take(found, read)
                if await found.consumer.position(found.partition) >= found.end:
                    self._hear(read)

    def _hear(self, found: Mapping[str, Wish]) -> None:
        if self.known and self._found == found:
            return
        self.known, self._found = True, dict(found)
        if self._component is not None:
            self._tell(self._component)
        self._heard.set()

    def _tell(self, component: str) -> None:
        wish = self.paused(component)
        self._heed(wish is not None)
        metrics.PAUSED.labels(component).set(wish is not None)
        if wish is not None:
            LOG.warning("standing still", component=component, reason=wish.said, hint=f"`cdc resume {component}`")
        elif self._still:
            LOG.info("going on", component=component)
        self._still = wish is not None

    def paused(self, component: str) -> Wish | None:
        """The wish that it stands still, if there is one."""
        wish = self._found.get(component)
        return wish if wish is not None and wish.paused else None

    def stills(self, component: str) -> bool:
        """Whether it is to stand still, or nobody knows yet."""
        return not self.known or self.paused(component) is not None

    def all_paused(self) -> dict[str, Wish]:
        """By component."""
        return {name: wish for name, wish in sorted(self._found.items()) if wish.paused}

    async def free(self, component: str) -> None:
        """Returns once it may go on. For one waiter."""
        while self.stills(component):
            self._heard.clear()
            await self._heard.wait()


async def read_wishes(kafka: Kafka) -> dict[str, Wish]:
    """The newest of each component, as the topic has them now; {} without the topic. Raises KafkaError."""
    read: dict[str, Wish] = {}
    async with _open(kafka) as found:
        while found is not None and await found.consumer.position(found.partition) < found.end:
            await _take(found, read)
    return read


async def make_wish(kafka: Kafka, component: Component, wish: Wish) -> None:
    """Returns when it is durable. Raises KafkaError; PreconditionError before a reader has made the topic."""
    async with _open(kafka) as found:
        if found is None:
            raise PreconditionError(
                f"the topic {kafka.control_topic} does not exist yet, or may not be read",
                hint="start the reader once, which makes it",
            )
    producer = AIOKafkaProducer(**kafka.client_options(), acks="all", enable_idempotence=True)
    try:
        await asyncio.wait_for(_send(producer, kafka.control_topic, component, wish), WRITE_SECONDS)
    except TimeoutError as error:
        raise KafkaTimeoutError(f"no answer for {WRITE_SECONDS:g} s while writing to {kafka.control_topic}") from error
    finally:
        await producer.stop()


async def _send(producer: AIOKafkaProducer, topic: str, component: Component, wish: Wish) -> None:
    await producer.start()
    await producer.send_and_wait(topic, msgspec.json.encode(wish), key=component.encode())


@asynccontextmanager
async def _open(kafka: Kafka) -> AsyncIterator[_Log | None]:
    """At the beginning of the topic; None while there is none."""
    consumer = AIOKafkaConsumer(
        **kafka.client_options(),
        request_timeout_ms=int(kafka.request_timeout_seconds * 1000),
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    try:
        await consumer.start()
        partition = TopicPartition(kafka.control_topic, 0)
        if partition.topic not in await consumer.topics():
            yield None
            return
        consumer.assign([partition])
        yield _Log(consumer, partition, (await consumer.end_offsets([partition]))[partition])
    finally:
        await consumer.stop()


async def _take(found: _Log, read: dict[str, Wish]) -> None:
    """One poll into `read`; a record that is not ours says nothing about our components."""
    for message in (await found.consumer.getmany(timeout_ms=POLL_MS)).get(found.partition, []):
        key = (message.key or b"").decode(errors="replace")
        wish = _decoded(message)
        if key in COMPONENTS and wish is not None:
            read[key] = wish


def _decoded(message: Any) -> Wish | None:
    try:
        return msgspec.json.decode(message.value or b"", type=Wish)
    except msgspec.DecodeError:
        LOG.warning("a record among the wishes is not ours", topic=message.topic, offset=message.offset)
        return None
