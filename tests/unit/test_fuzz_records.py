"""Records of topics, broken in every way: dead letters or typed errors in grouping, stores, progress, heartbeats."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from aiokafka import ConsumerRecord, TopicPartition

from cdc.assembler import Assembler
from cdc.config import Table, parse
from cdc.envelope import POSITION_HEADER, SWEEP_KEY, TRUNCATE_KEY, VERSION_HEADER, decode_event, decode_key
from cdc.errors import CdcError, DecodeError, RecordError
from cdc.kafka.progress import Progress, SnapshotState, decode_progress, encode_progress
from cdc.kafka.writer import encode_heartbeat
from cdc.position import Position
from cdc.source.events import MESSAGE_PREFIX, Begin, Commit, Message
from cdc.source.rows import Envelope, Origin
from consumers.batches import Foreign, Marker, work
from consumers.faiss.columns import VectorColumn
from consumers.faiss.content import Content
from consumers.freshness import Freshness
from consumers.letters import DeadLetter, headers_of
from consumers.letters import parse as parse_letter
from consumers.redis.keys import keys_for
from consumers.redis.rows import RowEncoder
from consumers.store import Record
from consumers.topics import TableTopics
from tests.chance import seeded
from tests.property.delivery.source import KEY, NAMES, TABLES, TOPICS, fragments
from tests.unit.fuzzing import INPUTS, confuse, frugal, guarded, mutate

CONFIG = parse({"postgres": {"dsn": "", "tables": ["public.*"]}, "kafka": {"bootstrap": "none", "prefix": "m"}})
TOPIC = TOPICS[NAMES[0]]
TABLE_TOPICS = TableTopics("m")
ROUND = 200  # inputs between two looks at the clock

Headers = list[tuple[str, bytes]]


def good() -> tuple[list[bytes], list[bytes], list[Headers]]:
    """Keys, values and headers as the reader writes them."""
    envelope = Envelope(Origin("m", "db", 1), TABLES[NAMES[0]], (7, 1000, 10**15))
    rows = [envelope.upsert(b"c", fragments(n, n), n) for n in range(1, 5)]
    rows.append(envelope.delete([b"1"], 9))
    rows.append(envelope.marker(Position(1, 1000, 10).encode().decode(), 10))
    keys = [KEY % b"1", KEY % b"2", KEY % b'"text"', TRUNCATE_KEY, SWEEP_KEY]
    return keys, [value for value, _ in rows], [headers for _, headers in rows]


class Fuzz:
    """Seeded inputs; counts what became of them."""

    def __init__(self, test: str) -> None:
        self.rng: random.Random = seeded(test)
        self.outcomes: Counter[str] = Counter()
        self.done = 0

    def broken(self, inputs: list[bytes], often: float = 0.7) -> bytes:
        """Sound, mutated as bytes, or as JSON."""
        if self.rng.random() > often:
            return inputs[int(self.rng.random() * len(inputs))]
        return (mutate if self.rng.random() < 0.6 else confuse)(self.rng, inputs)

    def run(self, share: float, one: Callable[[], str]) -> None:
        """`one` until the share of all inputs is done."""
        with frugal():
            while self.done < INPUTS * share:
                with guarded():
                    for _ in range(ROUND):
                        self._count(one)
        print(f"{self.done:,} inputs: {dict(self.outcomes)}")
        assert len(self.outcomes) > 1, "nothing was broken, or all"

    def _count(self, one: Callable[[], str]) -> None:
        try:
            outcome = one()
        except CdcError as error:
            outcome = type(error).__name__
        self.outcomes[outcome] += 1
        self.done += 1


def test_records_of_a_table() -> None:
    """Each becomes part of a batch that the index takes, or a dead letter; a marker that lies is a typed error."""
    fuzz = Fuzz("records")
    rng = fuzz.rng
    keys, values, headers = good()
    content = Content(VectorColumn("v", "cosine", 2), "cosine", "fuzz")

    def message(offset: int) -> ConsumerRecord[bytes, bytes]:
        key = None if rng.random() < 0.02 else fuzz.broken(keys, 0.1)
        value = None if rng.random() < 0.1 else fuzz.broken(values, 0.5)
        carried = [
            (name if rng.random() > 0.01 else "other", fuzz.broken([text], 0.05)) for name, text in rng.choice(headers)
        ]
        return ConsumerRecord(TOPIC, 0, offset, 0, 0, key, value, None, 0, 0, tuple(carried))

    def one() -> str:
        messages = [message(offset) for offset in range(1 + int(rng.random() * 3))]
        partition = TopicPartition(TOPIC, 0)
        todo = work(TABLE_TOPICS, {partition: messages}, {partition: len(messages)}, 2)
        rejected = 0
        for step in todo.steps:
            if isinstance(step, Foreign):
                rejected += len(step.rejected)
            elif isinstance(step, Marker):
                content.truncate(step.below)
            elif step.records:
                rejected += len(content.apply(step.records).rejected) + in_redis(step.records)
        return "dead letters" if rejected else "applied"

    fuzz.run(0.1, one)


def in_redis(records: Sequence[Record]) -> int:
    """How many the Redis store would refuse."""
    encoder = RowEncoder("public.memories", Table(), "bytes", "t:by_user:")
    refused = 0
    for record in records:
        try:
            encoder.encode(record, None)
            keys_for(CONFIG, "public", "memories", record.key)
        except (RecordError, DecodeError):
            refused += 1
    return refused


def hears(freshness: Freshness, value: bytes) -> None:
    """A heartbeat from the topic."""
    key = CONFIG.source_name.encode()
    freshness._hear(ConsumerRecord("", 0, 0, 0, 0, key, value, None, 0, 0, ()))
    freshness.reached({(TOPIC, 0): 50}, TABLE_TOPICS.__contains__, {TOPIC})


def test_envelopes_progress_heartbeats() -> None:
    """What decodes alone: events and keys, the progress record, heartbeats."""
    fuzz = Fuzz("control records")
    keys, values, _ = good()
    progress = Progress(
        source="m", slot="s", system_id="1", timeline=1, epoch=1,
        snapshots={"public.memories": SnapshotState(after=["1"])},
    )  # fmt: skip
    states = [encode_progress(progress)]

    class Beat:
        ts_us, position = 10**15, Position(1, 1000, 0)

    beats = [encode_heartbeat(Beat, {TOPIC: [1, 2, 3]})]  # type: ignore[arg-type]
    freshness = Freshness(CONFIG, "fuzz")
    decoders: list[tuple[list[bytes], Callable[[bytes], Any]]] = [
        (values, decode_event), (keys, decode_key), (states, decode_progress), (beats, lambda v: hears(freshness, v)),
    ]  # fmt: skip

    def one() -> str:
        inputs, decode = decoders[int(fuzz.rng.random() * len(decoders))]
        decode(fuzz.broken(inputs))
        return "decoded"

    fuzz.run(0.1, one)


def test_messages_of_anybody() -> None:
    """A logical message with our prefix may hold anything; the reader goes on."""
    fuzz = Fuzz("messages")
    contents = [
        json.dumps(content).encode()
        for content in (
            {"kind": "heartbeat"},
            {"kind": "low", "chunk": "c", "table": ["public", "memories"]},
            {"kind": "high", "chunk": "c"},
            {"kind": "snapshot", "table": ["public", "memories"]},
        )
    ]
    progress = Progress(source="m", slot="s", system_id="1", timeline=1, epoch=1)
    assembler = Assembler(CONFIG, Origin("m", "db", 1), progress, lambda content: None)

    def one() -> str:
        lsn = 1000 + fuzz.done * 10
        content = fuzz.broken(contents)
        for event in (Begin(1, lsn, 10**15), Message(MESSAGE_PREFIX, content, True), Commit(lsn, lsn + 5)):
            assembler.add(event)
        return "with a heartbeat" if assembler.take().heartbeat else "without"

    fuzz.run(0.02, one)
    assert fuzz.outcomes.keys() <= {"with a heartbeat", "without"}


def test_dead_letters() -> None:
    """Records in the dead-letter topic: an entry, or a typed error."""
    fuzz = Fuzz("letters")
    rng = fuzz.rng
    position = Position(1, 2, 3).encode()
    letter = DeadLetter(b"k", b"v", "reason", "text", "redis", TOPIC, 1, 2, position, b"{}", 1700000000000)
    shapes = [headers_of(letter), headers_of(letter, ("cdc.dlq.kind", b"request"))]
    shapes.append(headers_of(letter, ("cdc.dlq.kind", b"closing"), ("cdc.dlq.outcome", b"redriven")))

    def one() -> str:
        carried = [(name, fuzz.broken([text]) if rng.random() < 0.2 else text) for name, text in rng.choice(shapes)]
        if rng.random() < 0.2:
            del carried[int(rng.random() * len(carried))]
        message = ConsumerRecord("", 0, 0, 0, 0, b"k", b"v", None, 0, 0, tuple(carried))
        return type(parse_letter(message)).__name__

    fuzz.run(0.02, one)


@pytest.mark.parametrize("headers", [POSITION_HEADER, VERSION_HEADER])
def test_a_record_without_a_header_is_a_dead_letter(headers: str) -> None:
    keys, values, carried = good()
    left = tuple(header for header in carried[0] if header[0] != headers)
    record = ConsumerRecord(TOPIC, 0, 0, 0, 0, keys[0], values[0], None, 0, 0, left)
    partition = TopicPartition(TOPIC, 0)
    steps = work(TABLE_TOPICS, {partition: [record]}, {partition: 1}, 2).steps
    assert isinstance(steps[0], Foreign)
