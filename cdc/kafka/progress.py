"""The progress record: up to where the topics hold everything, written in the same transaction as the data."""

from __future__ import annotations

from typing import Any

import msgspec
from aiokafka import TopicPartition

from cdc.config import Config
from cdc.errors import MALFORMED, DecodeError
from cdc.kafka import failure
from cdc.kafka.offsets import open_consumer
from cdc.position import Position
from cdc.source.definition import Definition

READ_SECONDS = 60.0  # to read the whole topic: one small record a transaction until the broker compacts it


class SnapshotState(msgspec.Struct, frozen=True):
    """A table's snapshot. `after`: JSON array of the last key (as PostgreSQL text) up to which all chunks are in
    Kafka, None at the beginning; `rows` counts those written. `since`: a position (32 hex digits) below which it writes
    nothing, so that what is older when it ends was deleted unseen; None where nothing can be."""

    done: bool = False
    after: list[str] | None = None
    rows: int = 0
    since: str | None = None


class Backfill(SnapshotState, frozen=True, omit_defaults=True):
    """A part of `table` asked for: `keys` (texts of the key's columns), the rows that meet a condition, which stands in
    `cdc.conditions`, or all of them; at most `rate` rows a second. `gone` counts keys asked for that had no row, sent
    as deletes; `failed` is the reason why it ended, without any value of a row."""

    table: str = ""
    keys: list[list[str]] = []
    condition: bool = False
    rate: int | None = None
    gone: int = 0
    failed: str | None = None

    @property
    def ended(self) -> bool:
        """Done or failed."""
        return self.done or self.failed is not None


class Log(msgspec.Struct, frozen=True, omit_defaults=True):
    """The log behind a topic: Kafka's id of it, and the offset at which each partition begins; none is all zero."""

    id: str
    starts: list[int] = []


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at or below `(epoch, commit_lsn, ordinal)` is in Kafka. `complete` False: the transaction at
    `commit_lsn` was cut after `ordinal`. `end_lsn` is the slot's feedback: the end of the last whole transaction.
    `xid` and `commit_us` say which transaction is at `commit_lsn`, by which a history written anew is known
    (cdc/source/history.py). Records of older versions have no `xid` and no `database_oid`: 0."""

    source: str
    slot: str
    system_id: str
    timeline: int
    epoch: int
    commit_lsn: int = 0
    ordinal: int = 0
    complete: bool = True
    end_lsn: int = 0
    commit_us: int = 0
    xid: int = 0
    database_oid: int = 0
    snapshots: dict[str, SnapshotState] = {}
    backfills: dict[str, Backfill] = {}  # by id, the newest last, see cdc/source/backfill.py
    logs: dict[str, Log] = {}  # by topic, see cdc/kafka/logs.py
    definitions: dict[str, Definition] = {}  # by table, see cdc/source/definition.py

    @property
    def position(self) -> Position:
        """The newest position in Kafka."""
        return Position(self.epoch, self.commit_lsn, self.ordinal)


_DECODER = msgspec.json.Decoder(Progress)


def encode_progress(progress: Progress) -> bytes:
    """JSON, for the progress topic."""
    return msgspec.json.encode(progress)


def decode_progress(value: bytes) -> Progress:
    """Raises DecodeError."""
    try:
        return _DECODER.decode(value)
    except MALFORMED as error:
        raise DecodeError(
            f"not a progress record: {error}", hint="is the progress topic shared with another program?"
        ) from error


async def read_progress(config: Config) -> Progress | None:
    """What the newest committed record of our source says; None when there is none. Raises ConnectError, DecodeError.

    Only right once `Writer.start` has returned: until then an older writer may still commit, and its transaction's
    outcome may still be on its way to the topic.
    """
    value = await newest_value(config, config.kafka.progress_topic)
    return None if value is None else decode_progress(value)


async def newest_value(config: Config, topic: str) -> bytes | None:
    """Of our source, in one of our topics of one partition. Raises ConnectError."""
    partition = TopicPartition(topic, 0)
    doing = f"reading {topic}"
    async with open_consumer(config.kafka) as consumer, failure.bounded(config.kafka, doing, READ_SECONDS):
        if partition.topic not in await consumer.topics():
            return None  # no reader has made it yet; asking for its end would wait for it
        consumer.assign([partition])
        return await _last_value(consumer, partition, config.source_name.encode())


async def _last_value(consumer: Any, partition: TopicPartition, key: bytes) -> bytes | None:
    """The last value of the key up to the end as it is now."""
    end = (await consumer.end_offsets([partition]))[partition]
    value: bytes | None = None
    while await consumer.position(partition) < end:
        for records in (await consumer.getmany(partition, timeout_ms=200)).values():
            for record in records:
                if record.key == key:
                    value = record.value
    return value
