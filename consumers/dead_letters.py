"""Records a store cannot hold: kept durably in a topic of their own, with the reason, until a person has looked.

A letter is the record as it was (key, value, position and version headers) and, in headers, why and from where.
The same record may be written twice after a replay; topic, partition and offset of its source tell them apart.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, KafkaTimeoutError, TopicAlreadyExistsError, for_code

from cdc import log, metrics
from cdc.config import Config
from cdc.envelope import POSITION_HEADER, VERSION_HEADER, header
from consumers.batches import Message
from consumers.connection import disconnect
from consumers.replay import Span, replay, span_ends
from consumers.store import Rejected

LOG = log.get(__name__)

REASON = "cdc.dlq.reason"
MESSAGE = "cdc.dlq.message"
STORE = "cdc.dlq.store"
TOPIC = "cdc.dlq.topic"
PARTITION = "cdc.dlq.partition"
OFFSET = "cdc.dlq.offset"
TIME = "cdc.dlq.time"  # Unix milliseconds

DELIVERY_SECONDS = 30  # the client itself would try for ever; we do, but can be stopped in between
OVERHEAD_BYTES = 1 << 16  # headers and framing on top of the largest record


class DeadLetter(NamedTuple):
    """One letter as it lies in the topic; `position` is the record's wire form, empty for a record not of ours."""

    key: bytes | None
    value: bytes | None
    reason: str
    message: str
    store: str
    topic: str
    partition: int
    offset: int
    position: bytes
    vector: bytes
    time_ms: int


class DeadLetters:
    """Writes letters of one store; connects with the first one."""

    def __init__(self, config: Config, store: str) -> None:
        self._config = config
        self._store = store
        self._topic = config.kafka.dead_letter_topic(store)
        self._producer: AIOKafkaProducer | None = None

    async def add(self, topic: str, rejected: Sequence[Rejected]) -> None:
        """Returns when all are durable (acks=all, idempotent). Raises KafkaError; may be called again after that."""
        if self._producer is None:
            self._producer = await self._connect()
        try:
            await asyncio.wait_for(self._send(self._producer, topic, rejected), DELIVERY_SECONDS)
        except (KafkaError, TimeoutError) as error:
            await self.close()
            if isinstance(error, TimeoutError):
                raise KafkaTimeoutError(f"no answer for {DELIVERY_SECONDS} s while writing to {self._topic}") from error
            raise
        for letter in rejected:
            metrics.STORE_DEAD_LETTERS.labels(self._store, letter.reason).inc()
            LOG.warning(
                "a record went to the dead letters", store=self._store, topic=topic, reason=letter.reason,
                partition=letter.record.partition, offset=letter.record.offset,
            )  # fmt: skip

    async def _send(self, producer: AIOKafkaProducer, topic: str, rejected: Sequence[Rejected]) -> None:
        sent = [
            await producer.send(
                self._topic, letter.record.value, key=letter.record.key, headers=self._headers(topic, letter)
            )
            for letter in rejected
        ]
        await asyncio.gather(*sent)

    async def close(self) -> None:
        """Disconnects."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await disconnect(producer)

    def _headers(self, topic: str, letter: Rejected) -> list[tuple[str, bytes]]:
        record = letter.record
        return [
            (POSITION_HEADER, record.position),
            (VERSION_HEADER, record.vector),
            (REASON, letter.reason.encode()),
            (MESSAGE, letter.message.encode()),
            (STORE, self._store.encode()),
            (TOPIC, topic.encode()),
            (PARTITION, b"%d" % record.partition),
            (OFFSET, b"%d" % record.offset),
            (TIME, b"%d" % (time.time_ns() // 1_000_000)),
        ]

    async def _connect(self) -> AIOKafkaProducer:
        kafka = self._config.kafka
        await _ensure_topic(self._config, self._topic)
        producer = AIOKafkaProducer(
            **kafka.client_options(),
            acks="all",
            enable_idempotence=True,
            max_request_size=kafka.max_record_bytes + OVERHEAD_BYTES,
        )
        try:
            await producer.start()
        except BaseException:
            await disconnect(producer)
            raise
        return producer


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
            "max.message.bytes": str(kafka.max_record_bytes + OVERHEAD_BYTES),
        }
        answer = await admin.create_topics([NewTopic(name, 1, kafka.replication_factor, topic_configs=settings)])
    finally:
        await admin.close()
    for _topic, code, *_message in answer.topic_errors:
        error = for_code(code)
        if code and error is not TopicAlreadyExistsError:
            raise error(name)


async def read_dead_letters(config: Config, store: str) -> AsyncIterator[DeadLetter]:
    """Every letter of a store, oldest first; none when the topic does not exist yet. Raises KafkaError."""
    topic = config.kafka.dead_letter_topic(store)
    ends = await span_ends(config, [topic])
    async for messages in replay(config, {partition: Span(None, end) for partition, end in ends.items()}):
        for message in messages:
            yield _letter(message)


def _letter(message: Message) -> DeadLetter:
    def text(name: str) -> str:
        return header(message.headers, name).decode()

    return DeadLetter(
        key=message.key,
        value=message.value,
        reason=text(REASON),
        message=text(MESSAGE),
        store=text(STORE),
        topic=text(TOPIC),
        partition=int(text(PARTITION)),
        offset=int(text(OFFSET)),
        position=header(message.headers, POSITION_HEADER),
        vector=header(message.headers, VERSION_HEADER),
        time_ms=int(text(TIME)),
    )
