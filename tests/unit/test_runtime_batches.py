"""Steps 1 to 2: what is polled becomes batches, in order, split at markers, with the right offsets."""

from __future__ import annotations

import json
import random

import pytest
from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from cdc.envelope import POSITION_HEADER, SWEEP_KEY, TRUNCATE_KEY, VERSION_HEADER
from cdc.position import Position
from consumers.batches import Foreign, Marker, Message, halves, work
from consumers.store import Batch
from consumers.topics import TableTopics

TOPICS = TableTopics("m")
TOPIC = "m.public.memories"
BELOW = Position(1, 5, 0).encode()


def message(partition: int, offset: int, key: bytes | None = None, *, headers: object = None) -> Message:
    """A record as Kafka's client gives it."""
    marker = key in (TRUNCATE_KEY, SWEEP_KEY)
    source = {"name": "m", "db": "d", "schema": "public", "table": "memories", "ts_us": 1, "epoch": 1, "lsn": 5}
    value = {"op": "t" if marker else "c", "ts_ms": 1, "source": {**source, "ordinal": 0, "below": BELOW.decode()}}
    ours = ((POSITION_HEADER, Position(1, offset, partition).encode()), (VERSION_HEADER, b"{}"))
    name = key if key is not None else b'{"id":%d}' % offset
    carried = ours if headers is None else headers
    return ConsumerRecord(TOPIC, partition, offset, 0, 0, name, json.dumps(value).encode(), None, 0, 0, carried)


def grouped(polled: dict[int, list[Message]], limit: int = 10) -> list[Batch | Marker | Foreign]:
    """`work` of one topic; each partition ends two offsets after its last record."""
    keyed = {TopicPartition(TOPIC, partition): messages for partition, messages in polled.items()}
    return work(TOPICS, keyed, {p: messages[-1].offset + 3 for p, messages in keyed.items()}, limit).steps


def test_partitions_are_joined_up_to_the_limit() -> None:
    steps = grouped({0: [message(0, n) for n in range(25)], 1: [message(1, n) for n in range(4)]})
    assert [len(step.records) for step in steps if isinstance(step, Batch)] == [10, 10, 9]
    assert [step.offsets for step in steps if isinstance(step, Batch)] == [
        {(TOPIC, 0): 10},
        {(TOPIC, 0): 20},
        {(TOPIC, 0): 27, (TOPIC, 1): 6},  # ends pass the marks of transactions
    ]
    assert {(step.schema, step.table) for step in steps if isinstance(step, Batch)} == {("public", "memories")}


def test_markers_stand_between_what_is_before_and_after() -> None:
    keys = [None, None, TRUNCATE_KEY, None, SWEEP_KEY]
    steps = grouped({0: [message(0, n, key) for n, key in enumerate(keys)], 1: [message(1, 7)]})
    of_zero = [step for step in steps if isinstance(step, Marker) or next(iter(step.offsets))[1] == 0]  # type: ignore[union-attr]
    kinds = [
        (type(step).__name__, dict((step.batch if isinstance(step, Marker) else step).offsets)) for step in of_zero
    ]  # type: ignore[union-attr]
    assert kinds == [
        ("Batch", {(TOPIC, 0): 2}),
        ("Marker", {(TOPIC, 0): 3}),
        ("Batch", {(TOPIC, 0): 4}),
        ("Marker", {(TOPIC, 0): 7}),
    ]
    assert {step.below for step in of_zero if isinstance(step, Marker)} == {BELOW}


def test_a_marker_without_a_position_is_set_aside() -> None:
    """Ours always has one. It may not stop all tables for ever, nor empty one by a guess."""
    broken = message(0, 0, TRUNCATE_KEY)
    broken.value = b'{"op":"t"}'
    foreign, batch = grouped({0: [broken, message(0, 1)]})
    assert isinstance(foreign, Foreign)
    assert [letter.reason for letter in foreign.rejected] == ["foreign"]
    assert isinstance(batch, Batch)
    assert [record.offset for record in batch.records] == [1]


def test_foreign_records_are_rejected_and_passed() -> None:
    strange = [message(0, 0, headers=()), message(0, 1, headers=((POSITION_HEADER, b"short"), (VERSION_HEADER, b"{}")))]
    steps = grouped({0: strange})
    assert [type(step).__name__ for step in steps] == ["Foreign", "Batch"]
    assert [rejected.record.offset for rejected in steps[0].rejected] == [0, 1]  # type: ignore[union-attr]
    assert steps[1].offsets == {(TOPIC, 0): 4}  # type: ignore[union-attr]


def test_other_headers_do_not_matter() -> None:
    ours = message(0, 0).headers
    steps = grouped({0: [message(0, 0, headers=(("traceparent", b"x"), ours[1], ours[0]))]})
    assert [record.position for step in steps if isinstance(step, Batch) for record in step.records] == [ours[0][1]]


def test_every_record_comes_once_and_in_order() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _trial in range(200):
        polled = {partition: _some(chance, partition) for partition in range(chance.randint(1, 4))}
        limit = chance.randint(1, 30)
        seen: dict[int, list[int]] = {partition: [] for partition in polled}
        reached: dict[tuple[str, int], int] = {}
        for step in grouped(polled, limit):
            assert not isinstance(step, Foreign)
            batch = step.batch if isinstance(step, Marker) else step
            assert len(batch.records) <= limit
            for record in batch.records:
                seen[record.partition].append(record.offset)
            for partition, offset in batch.offsets.items():
                assert offset > reached.get(partition, 0)
                assert all(o >= offset for o in _left(polled[partition[1]], seen[partition[1]]))
            reached.update(batch.offsets)
        assert seen == {partition: [m.offset for m in messages] for partition, messages in polled.items()}
        assert reached == {(TOPIC, p): messages[-1].offset + 3 for p, messages in polled.items()}


def _some(chance: random.Random, partition: int) -> list[Message]:
    start = chance.randrange(50)
    offsets = range(start, start + chance.randint(1, 60))
    return [message(partition, offset, chance.choice([None] * 9 + [SWEEP_KEY])) for offset in offsets]


def _left(messages: list[Message], seen: list[int]) -> list[int]:
    return [m.offset for m in messages[len(seen) :]]


def test_halves_reach_no_further_than_they_hold() -> None:
    batch = grouped({0: [message(0, n) for n in range(6)], 1: [message(1, n) for n in range(3)]})[0]
    assert isinstance(batch, Batch)
    first, second = halves(batch)
    assert [*first.records, *second.records] == batch.records
    assert first.offsets == {(TOPIC, 0): 4}
    assert second.offsets == batch.offsets


@pytest.mark.parametrize(
    ("topic", "wanted"),
    [
        ("m.public.memories", True),
        ("m.public.notes", False),
        ("m.cdc.heartbeat", False),
        ("m.cdc.dead-letters.redis", False),
        ("other.public.memories", False),
        ("mm.public.memories", False),
    ],
)
def test_topics_of_a_table(topic: str, wanted: bool) -> None:
    assert (topic in TableTopics("m", ["public.mem*"])) is wanted
    assert (topic in TOPICS) is (topic.startswith("m.public."))
