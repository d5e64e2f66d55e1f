"""Rows above `[kafka] max_record_bytes`: refused with words, or, knowingly, set aside by `oversized = "dead-letter"`.

Set aside means: in the place of the row a tombstone goes into its topic, so that no store goes on with the row's older
state (they lack the key, and `cdc verify` says so), and a letter without the row goes into the reader's dead-letter
topic, in the same Kafka transaction. The next record of the key that fits brings the row back and closes the letter.
"""

from __future__ import annotations

import time

from aiokafka import TopicPartition

from cdc.config import Config
from cdc.dead_letter import (
    CLOSING,
    KIND,
    MESSAGE,
    NOWHERE,
    OFFSET,
    OUTCOME,
    PARTITION,
    READER,
    REASON,
    STORE,
    TIME,
    TOPIC,
)
from cdc.envelope import POSITION_HEADER
from cdc.errors import RecordError
from cdc.kafka import failure
from cdc.kafka.chunk import Chunk, Outgoing
from cdc.kafka.offsets import open_consumer
from cdc.metrics import READER_OVERSIZED
from cdc.position import decode_position

OVERHEAD_BYTES = 1024  # of a batch with one record: framing and headers beside key and value
REASON_TOO_LARGE = "too_large"
READ_SECONDS = 60.0

Headers = list[tuple[str, bytes]]


class Oversized:
    """`letters`: the headers of the open letters by topic and key."""

    def __init__(self, config: Config, letters: dict[tuple[str, bytes], Headers]) -> None:
        kafka = config.kafka
        self.limit = kafka.max_record_bytes - OVERHEAD_BYTES
        self.letters = letters
        self._prefix = f"{kafka.prefix}."
        self._topic = kafka.dead_letter_topic(READER)
        self._stops = kafka.oversized == "stop"

    def instead(self, chunk: Chunk, topic: str, record: Outgoing) -> Outgoing:
        """What goes to Kafka in the place of a record above the limit. Raises RecordError where that is not wanted."""
        key, value, timestamp, headers = record
        size, position = len(value or b""), dict(headers)[POSITION_HEADER]
        table = topic.removeprefix(self._prefix)
        if self._stops:
            raise RecordError(
                REASON_TOO_LARGE,
                f"a row of {table} at {decode_position(position)} has {size} bytes as a record, more than [kafka] "
                "max_record_bytes allows; nothing behind it is delivered",
                hint="raise max_record_bytes and the topic's max.message.bytes, or set [kafka] oversized = "
                "'dead-letter' to go on without such rows; docs/runbooks.md#reader-blocked",
            )
        letter = self._letter(topic, headers, size)
        chunk.add(self._topic, key, None, timestamp, letter)
        self.letters[topic, key] = letter
        READER_OVERSIZED.labels(table).inc()
        return key, None, timestamp, headers

    def settled(self, chunk: Chunk, topic: str, key: bytes, timestamp: int) -> None:
        """A record of the key fits, or it is gone: its letter is closed, with the same chunk."""
        letter = self.letters.pop((topic, key), None)
        if letter is not None:
            more = [(KIND, CLOSING), (OUTCOME, b"superseded"), (TIME, _now())]
            chunk.add(self._topic, key, None, timestamp, [pair for pair in letter if pair[0] != TIME] + more)

    def _letter(self, topic: str, headers: Headers, size: int) -> Headers:
        message = f"{size} bytes as a record, more than [kafka] max_record_bytes"
        return [
            *headers,
            (REASON, REASON_TOO_LARGE.encode()),
            (MESSAGE, message.encode()),
            (STORE, READER.encode()),
            (TOPIC, topic.encode()),
            (PARTITION, b"%d" % NOWHERE),
            (OFFSET, b"%d" % NOWHERE),
            (TIME, _now()),
        ]


def _now() -> bytes:
    return b"%d" % (time.time_ns() // 1_000_000)


async def open_oversized(config: Config) -> Oversized:
    """With the letters still open. Raises ConnectError."""
    letters: dict[tuple[str, bytes], Headers] = {}
    partition = TopicPartition(config.kafka.dead_letter_topic(READER), 0)
    doing = "reading the reader's dead letters"
    async with open_consumer(config.kafka) as consumer, failure.bounded(config.kafka, doing, READ_SECONDS):
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        while await consumer.position(partition) < end:
            for records in (await consumer.getmany(partition, timeout_ms=200)).values():
                for record in records:
                    named = dict(record.headers)
                    place = named.get(TOPIC, b"").decode(errors="replace"), record.key  # '' for a record not of ours
                    if POSITION_HEADER in named and KIND not in named:
                        letters[place] = list(record.headers)
                    elif named.get(KIND) == CLOSING:
                        letters.pop(place, None)
    return Oversized(config, letters)
