"""Steps (1) → (2): what was polled becomes batches of one table, split where a marker says that older rows are gone.

Order within a partition is kept, between partitions there is none to keep. No await here, and one tuple a record.
A record without our key and headers cannot be ordered, so it is rejected, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

from aiokafka import ConsumerRecord, TopicPartition

from cdc.envelope import MARKER_KEYS, POSITION_HEADER, VERSION_HEADER, decode_event, header
from cdc.errors import DecodeError
from cdc.position import HEX, WIDTH, decode_position
from cdc.version import decode_vector
from consumers.store import Batch, Record, Rejected
from consumers.topics import TableTopics

Message: TypeAlias = ConsumerRecord  # key and value are bytes or None


class Marker(NamedTuple):
    """Every row of the table with a position < `below` is gone. `batch` holds the marker record alone."""

    batch: Batch
    below: bytes


class Foreign(NamedTuple):
    """Records of a topic that are not ours."""

    topic: str
    rejected: list[Rejected]


class Work(NamedTuple):
    """What a poll asks for, in order within each partition, and the newest position in it."""

    steps: list[Batch | Marker | Foreign]
    newest: bytes


class Polled(NamedTuple):
    """One partition's part of a poll: its records, and the offset after them (past control records)."""

    records: list[Record]
    end: int


def work(
    topics: TableTopics,
    polled: Mapping[TopicPartition, Sequence[Message]],
    ends: Mapping[TopicPartition, int],
    limit: int,
) -> Work:
    """A poll's work; `ends` are the offsets after it. Raises DecodeError for a marker that does not parse."""
    steps: list[Batch | Marker | Foreign] = []
    parts: dict[str, dict[int, Polled]] = {}
    newest = b""
    for partition, messages in polled.items():
        records, foreign = to_records(messages)
        parts.setdefault(partition.topic, {})[partition.partition] = Polled(records, ends[partition])
        if records:
            newest = max(newest, records[-1].position)
        if foreign:
            steps.append(Foreign(partition.topic, foreign))
            if not records:  # the store notes the offset, so that the letters are not written again
                reached = {(partition.topic, partition.partition): ends[partition]}
                steps.append(Batch(*topics.split(partition.topic), partition.topic, [], reached))
    for topic, of_topic in parts.items():
        steps += batches(*topics.split(topic), topic, of_topic, limit)
    return Work(steps, newest)


def to_records(messages: Sequence[Message]) -> tuple[list[Record], list[Rejected]]:
    """Kafka's records of one partition, in order, and those that are not ours."""
    new = tuple.__new__  # half the time of Record(…): the one place where that shows
    records: list[Record] = []
    rejected: list[Rejected] = []
    add = records.append
    for message in messages:
        headers: Any = message.headers
        if (
            len(headers) == 2
            and headers[0][0] == POSITION_HEADER
            and headers[1][0] == VERSION_HEADER
            and len(headers[0][1]) == WIDTH
            and message.key is not None
        ):
            key, value, partition, offset = message.key, message.value, message.partition, message.offset
            add(new(Record, (key, value, headers[0][1], headers[1][1], partition, offset)))
        else:
            _examine(message, records, rejected)
    if not _sound(records):
        return _sorted_out(records, rejected)
    return records, rejected


def _sound(records: Sequence[Record]) -> bool:
    """Whether all headers decode and every marker says what is gone: a few steps a poll, not a record."""
    if b"".join([record.position for record in records]).translate(None, HEX):
        return False
    try:
        for vector in {record.vector for record in records}:
            decode_vector(vector)
        for record in records:
            if record.key in MARKER_KEYS:
                marker_below(record)
    except DecodeError:
        return False
    return True


def _sorted_out(records: Sequence[Record], rejected: list[Rejected]) -> tuple[list[Record], list[Rejected]]:
    """One by one: what `_sound` found. A position that is none would outrank every other, and so stay for ever."""
    good: list[Record] = []
    for record in records:
        try:
            decode_position(record.position)
            decode_vector(record.vector)
            if record.key in MARKER_KEYS:
                marker_below(record)
        except DecodeError as error:
            rejected.append(Rejected(record._replace(position=b"", vector=b""), "foreign", error.message))
        else:
            good.append(record)
    return good, rejected


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """A batch of two records or more cut in the middle, each part with the offsets it reaches."""
    middle = len(batch.records) // 2
    first, second = batch.records[:middle], batch.records[middle:]
    reached = {(batch.topic, record.partition): record.offset + 1 for record in first}
    return replace(batch, records=first, offsets=reached), replace(batch, records=second)


def _examine(message: Message, records: list[Record], rejected: list[Rejected]) -> None:
    """The slow path: other headers beside ours, another order, or none of ours."""
    try:
        if message.key is None:
            raise DecodeError("a record has no key", hint="was this topic written by another program?")
        position = header(message.headers, POSITION_HEADER)
        vector = header(message.headers, VERSION_HEADER)
        if len(position) != WIDTH:
            raise DecodeError(f"a position has {len(position)} bytes", hint=f"expected {WIDTH}")
    except DecodeError as error:
        record = Record(message.key or b"", message.value, b"", b"", message.partition, message.offset)
        rejected.append(Rejected(record, "foreign", error.message))
    else:
        records.append(Record(message.key, message.value, position, vector, message.partition, message.offset))


def batches(schema: str, table: str, topic: str, polled: Mapping[int, Polled], limit: int) -> Iterator[Batch | Marker]:
    """The work of one topic, at most `limit` records a batch. Raises DecodeError for a marker that does not parse."""
    pieces: list[tuple[list[Record], int]] = []
    marked: dict[int, Polled] = {}
    for partition, part in polled.items():
        if MARKER_KEYS.isdisjoint([record.key for record in part.records]):
            pieces += _pieces(part, limit)
        else:
            marked[partition] = part
    yield from _joined(schema, table, topic, pieces, limit)
    for partition, part in marked.items():
        for piece, end in _split(part):
            if piece and piece[0].key in MARKER_KEYS:
                yield Marker(Batch(schema, table, topic, piece, {(topic, partition): end}), marker_below(piece[0]))
            else:
                yield from _joined(schema, table, topic, _pieces(Polled(piece, end), limit), limit)


def _pieces(part: Polled, limit: int) -> list[tuple[list[Record], int]]:
    """Cuts a partition's records into at most `limit` each, with the offset reached after each."""
    records = part.records
    if len(records) <= limit:
        return [(records, part.end)] if records else []
    cut = [records[start : start + limit] for start in range(0, len(records), limit)]
    return [(piece, piece[-1].offset + 1) for piece in cut[:-1]] + [(cut[-1], part.end)]


def _joined(
    schema: str, table: str, topic: str, pieces: Sequence[tuple[list[Record], int]], limit: int
) -> Iterator[Batch]:
    """Joins small pieces of several partitions, so that a store sees few large batches."""
    records: list[Record] = []
    offsets: dict[tuple[str, int], int] = {}
    for piece, end in pieces:
        if records and len(records) + len(piece) > limit:
            yield Batch(schema, table, topic, records, offsets)
            records, offsets = [], {}
        records += piece
        offsets[topic, piece[0].partition] = end
    if records:
        yield Batch(schema, table, topic, records, offsets)


def _split(part: Polled) -> Iterator[tuple[list[Record], int]]:
    """A partition's records around its markers; each marker comes alone."""
    start = 0
    records = part.records
    for index, record in enumerate(records):
        if record.key in MARKER_KEYS:
            if index > start:
                yield records[start:index], record.offset
            yield [record], record.offset + 1 if index + 1 < len(records) else part.end
            start = index + 1
    if start < len(records):
        yield records[start:], part.end


def marker_below(marker: Record) -> bytes:
    """The position under which rows are gone. Raises DecodeError."""
    if marker.value is None:
        raise DecodeError("a marker has no value", hint="was this topic written by another program?")
    below = decode_event(marker.value).source.below
    if below is None or len(below) != WIDTH:
        raise DecodeError("a marker lacks source.below", hint="was this topic written by another program?")
    return below.encode()
