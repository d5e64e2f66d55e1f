"""Records a store cannot hold: kept durably in a topic of their own, with the reason, until they are settled.

This is the writing side; `consumers.letters` says what lies in the topic and what is open.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, KafkaTimeoutError, TopicAlreadyExistsError, for_code

from cdc import log, metrics
from cdc.config import Config
from cdc.dead_letter import CLOSING, KIND, OUTCOME, REQUEST
from consumers.connection import disconnect
from consumers.letters import DeadLetter, Headers, Outcome, headers_of
from consumers.store import Rejected

LOG = log.get(__name__)

DELIVERY_SECONDS = 30  # the client itself would try for ever; we do, but can be stopped in between

Sendable = tuple[bytes | None, bytes | None, Headers]  # key, value, headers


class DeadLetters:
    """Writes letters of one store, and what becomes of them; connects with the first one."""

    def __init__(self, config: Config, store: str) -> None:
        self._config = config
        self._store = store
        self._topic = config.kafka.dead_letter_topic(store)
        self._producer: AIOKafkaProducer | None = None
        self._delivering = asyncio.Lock()  # the apply loop and those who look at letters share one connection
        self.written = asyncio.Event()  # something was: whoever reads the topic may look

    async def add(self, topic: str, rejected: Sequence[Rejected]) -> None:
        """Returns when all are durable (acks=all, idempotent). Raises KafkaError; may be called again after that."""
        letters = [(letter.record, self._letter(topic, letter)) for letter in rejected]
        await self._deliver([(record.key, record.value, headers_of(letter)) for record, letter in letters])
        for record, letter in letters:
            metrics.STORE_DEAD_LETTERS.labels(self._store, letter.reason).inc()
            LOG.warning(
                "a record went to the dead letters", store=self._store, topic=topic, reason=letter.reason,
                partition=record.partition, offset=record.offset, position=letter.position.decode(),
            )  # fmt: skip

    async def request(self, letters: Sequence[DeadLetter]) -> None:
        """Asks the store's consumer to redrive them. Raises KafkaError."""
        await self._deliver([_about(letter, (KIND, REQUEST)) for letter in letters])

    async def close_letters(self, settled: Mapping[DeadLetter, Outcome]) -> None:
        """Notes durably what became of them. Raises KafkaError; may be called again after that."""
        if not settled:
            return
        kind = KIND, CLOSING
        await self._deliver([_about(letter, kind, (OUTCOME, how.encode())) for letter, how in settled.items()])
        for letter, how in settled.items():
            LOG.info("a dead letter is settled", store=self._store, letter=letter.id, outcome=how)

    async def _deliver(self, items: Sequence[Sendable]) -> None:
        async with self._delivering:
            await self._delivered(items)
        self.written.set()

    async def _delivered(self, items: Sequence[Sendable]) -> None:
        if self._producer is None:
            self._producer = await self._connect()
        try:
            await asyncio.wait_for(self._send(self._producer, items), DELIVERY_SECONDS)
        except (KafkaError, TimeoutError) as error:
            await self.close()
            if isinstance(error, TimeoutError):
                raise KafkaTimeoutError(f"no answer for {DELIVERY_SECONDS} s while writing to {self._topic}") from error
            raise

    async def _send(self, producer: AIOKafkaProducer, items: Sequence[Sendable]) -> None:
        sent = [await producer.send(self._topic, value, key=key, headers=headers) for key, value, headers in items]
        await asyncio.gather(*sent)

    async def close(self) -> None:
        """Disconnects."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await disconnect(producer)

    def _letter(self, topic: str, rejected: Rejected) -> DeadLetter:
        """Without the value, which may be large."""
        record = rejected.record
        return DeadLetter(
            record.key, None, rejected.reason, rejected.message, self._store, topic, record.partition, record.offset,
            record.position, record.vector, time.time_ns() // 1_000_000,
        )  # fmt: skip

    async def _connect(self) -> AIOKafkaProducer:
        kafka = self._config.kafka
        await _ensure_topic(self._config, self._topic)
        producer = AIOKafkaProducer(
            **kafka.client_options(),
            acks="all",
            enable_idempotence=True,
            max_request_size=kafka.dead_letter_bytes,
        )
        try:
            await producer.start()
        except BaseException:
            await disconnect(producer)
            raise
        return producer


def _about(letter: DeadLetter, *more: tuple[str, bytes]) -> Sendable:
    """A record that speaks of a letter, stamped now."""
    return letter.key, None, headers_of(letter._replace(time_ms=time.time_ns() // 1_000_000), *more)


async def _ensure_topic(config: Config, name: str) -> None:
    """The topic is made when the first letter needs it; letters never expire."""
    kafka = config.kafka
    admin = AIOKafkaAdminClient(**kafka.client_options())
    try:
        await admin.start()
        if name in await admin.list_topics():
            return
        settings = {
            "cleanup.policy": "delete",
            "retention.ms": "-1",
            "retention.bytes": "-1",
            "min.insync.replicas": str(kafka.min_insync_replicas),
            "max.message.bytes": str(kafka.dead_letter_bytes),
        }
        answer = await admin.create_topics([NewTopic(name, 1, kafka.replication_factor, topic_configs=settings)])
    finally:
        await admin.close()
    for _topic, code, *_message in answer.topic_errors:
        error = for_code(code)
        if code and error is not TopicAlreadyExistsError:
            raise error(name)
