"""The invariants of the crash harness: every violation is planted once and found, and what is right passes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from aiokafka import TopicPartition

from cdc.config import Config, parse
from cdc.envelope import TRUNCATE_KEY
from cdc.failpoint import POINTS
from cdc.position import Position
from tests.comparison import Record
from tests.crash.cases import CASES, ELSEWHERE, KINDS, deal
from tests.crash.invariants import (
    Change,
    Key,
    Violation,
    caught_up_in_time,
    complete,
    equal,
    in_order,
    memory_bounded,
    never_older,
    offsets_behind,
    rebuilt_equal,
    sessions_in_order,
    slot_behind,
    version_grows,
)
from tests.crash.witness import Witness
from tests.crash.workload import Journal

ROW = Key("memories", "1")


def position(lsn: int, ordinal: int = 1) -> bytes:
    return Position(1, lsn, ordinal).encode()


def record(lsn: int, value: bytes | None = b"{}", key: bytes = b'{"id":1}') -> Record:
    return Record(0, lsn, key, value, {"cdc.pos": position(lsn)})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (record(5), record(5)),  # twice
        (record(5), record(4)),  # backwards
        (record(5, None), record(5, None)),  # a second tombstone
        (record(5), record(6, None)._replace(headers={"cdc.pos": position(4)})),
        (None, record(1, None)),  # a tombstone of nothing
    ],
)
def test_what_is_out_of_order_is_found(before: Record | None, after: Record) -> None:
    with pytest.raises(Violation):
        in_order(before, after)


def test_what_is_in_order_passes() -> None:
    in_order(None, record(1))
    in_order(record(1), record(2))
    in_order(record(2), record(2, None))


def test_a_version_that_does_not_grow_is_found() -> None:
    version_grows(ROW, 3, 4, again=False)
    version_grows(ROW, 3, 3, again=True)
    for version, again in ((3, False), (2, False), (2, True)):
        with pytest.raises(Violation):
            version_grows(ROW, 3, version, again=again)


def test_a_store_that_goes_back_is_found() -> None:
    never_older(ROW, b"", position(1))
    never_older(ROW, position(1), position(1))
    with pytest.raises(Violation):
        never_older(ROW, position(2), position(1))


def counted(*versions: int | None) -> Counter[Change]:
    return Counter(Change(ROW, version) for version in versions)


@pytest.mark.parametrize(
    ("acknowledged", "doubtful", "seen"),
    [
        (counted(1, 2), counted(), counted(2)),  # a gap
        (counted(1, None, None), counted(), counted(1, None)),  # a delete too few
        (counted(1), counted(), counted(1, 2)),  # rolled back, and there
        (counted(1), counted(), counted(1, 1)),  # twice
        (counted(1), counted(2), counted(2)),  # the doubtful one does not stand for the other
    ],
)
def test_gaps_and_phantoms_are_found(
    acknowledged: Counter[Change], doubtful: Counter[Change], seen: Counter[Change]
) -> None:
    with pytest.raises(Violation):
        complete(acknowledged, doubtful, seen, gap=False)


def test_what_is_complete_passes() -> None:
    complete(counted(1, 2, None), counted(3), counted(1, 2, None), gap=False)
    complete(counted(1, 2, None), counted(3), counted(1, 2, 3, None), gap=False)
    complete(counted(1, 2), counted(), counted(2), gap=True)
    with pytest.raises(Violation):
        complete(counted(1), counted(), counted(2), gap=True)


def test_transactions_of_a_session_out_of_order_are_found() -> None:
    sessions_in_order({"a": {1: {10}, 3: {20}}, "b": {1: {15}}})
    for wrong in ({1: {10}, 2: {9}}, {1: {10}, 2: {10}}, {1: {10, 11}}):
        with pytest.raises(Violation):
            sessions_in_order({"a": wrong})


@pytest.mark.parametrize("held", [{}, {"1": "new", "2": "extra"}, {"1": "old"}])
def test_a_store_that_differs_is_found(held: dict[str, str]) -> None:
    equal("Redis", {"1": "new"}, {"1": "new"})
    with pytest.raises(Violation, match="Redis differs"):
        equal("Redis", {"1": "new"}, held)


def test_a_slot_or_offsets_ahead_are_found() -> None:
    slot_behind(5, 5)
    offsets_behind({("t", 0): 5}, {("t", 0): 5, ("t", 1): 1})
    with pytest.raises(Violation):
        slot_behind(6, 5)
    for durable in ({}, {("t", 0): 4}):
        with pytest.raises(Violation):
            offsets_behind({("t", 0): 5}, durable)


def test_bounds_that_are_passed_are_found() -> None:
    caught_up_in_time(79, 10)
    memory_bounded("reader", 200 << 20)
    with pytest.raises(Violation):
        caught_up_in_time(81, 10)
    with pytest.raises(Violation):
        memory_bounded("reader", 600 << 20)


def test_a_rebuild_that_differs_is_found() -> None:
    right: dict[str, Any] = {
        "swapped": True, "differences_of_replaced": 0, "replaced_unreadable": None,
        "rows": {"public.memories": {"rebuilt": 2, "topics": 3, "replaced": 2}},
    }  # fmt: skip
    rebuilt_equal(right, quiet=True)
    rebuilt_equal({**right, "differences_of_replaced": 2}, quiet=False)
    rebuilt_equal({**right, "rows": {"public.memories": {"rebuilt": 2, "replaced": 3}}}, quiet=False)
    wrong: list[dict[str, Any]] = [
        {"swapped": False}, {"differences_of_replaced": 1}, {"replaced_unreadable": "away"},
        {"rows": {"public.memories": {"rebuilt": 2, "replaced": 3}}},
    ]  # fmt: skip
    for change in wrong:
        with pytest.raises(Violation):
            rebuilt_equal({**right, **change}, quiet=True)


class _Message(msgspec.Struct):
    offset: int
    key: bytes
    value: bytes | None
    headers: list[tuple[str, bytes]]


def message(offset: int, lsn: int, version: int, op: str = "c", who: str = "a:1", key: bytes = b'{"id":1}') -> _Message:
    """What a topic of memories would bring."""
    source = {"name": "s", "db": "d", "schema": "public", "table": "memories", "ts_us": 0, "epoch": 1, "lsn": lsn,
              "ordinal": 1, "below": position(lsn).decode()}  # fmt: skip
    after = {"id": 1, "version": version, "who": who} if op != "d" else None
    value = msgspec.json.encode({"op": op, "source": source, "ts_ms": 0, "before": None, "after": after})
    return _Message(offset, key, value, [("cdc.pos", position(lsn))])


@pytest.fixture
def witness() -> Witness:
    config: Config = parse({"postgres": {"dsn": "dbname=x"}, "kafka": {"bootstrap": "127.0.0.1:1", "prefix": "t"}})
    return Witness(config, ["memories"])


def journal(*versions: int | None) -> Journal:
    made = Journal()
    made.add([Change(ROW, version) for version in versions])
    return made


def test_the_witness_finds_what_is_planted_in_a_topic(witness: Witness) -> None:
    place = TopicPartition("t.public.memories", 0)
    for made in (message(0, 10, 1), message(1, 20, 2, "u", "a:2"), message(2, 30, 0, "d")):
        witness.see(place, made)
    witness.check(journal(1, 2, None), gap=False)
    for planted in ((1, 2, 3, None), (1, None), (1, 2)):
        with pytest.raises(Violation):
            witness.check(journal(*planted), gap=False)
    with pytest.raises(Violation):
        witness.see(place, message(3, 30, 4))  # a position again
    with pytest.raises(Violation):
        witness.see(place, message(4, 40, 2, "u"))  # a version again
    witness.see(place, message(5, 50, 9, "c", "a:1"))  # an older transaction after a newer one
    with pytest.raises(Violation):
        witness.check(journal(1, 2, None, 9), gap=False)


def test_the_witness_keeps_what_remains(witness: Witness) -> None:
    place = TopicPartition("t.public.memories", 0)
    witness.see(place, message(0, 10, 1))
    assert list(witness.held["memories"]) == [b'{"id":1}']
    witness.see(place, message(1, 20, 0, "t", key=TRUNCATE_KEY))
    assert witness.held["memories"] == {}


def test_every_failpoint_has_its_turn_in_every_deck() -> None:
    dealt = [deal(7, number, KINDS) for number in range(2 * len(CASES))]
    assert {case.point for cases in dealt[: len(CASES)] for case in cases} >= POINTS.keys() - ELSEWHERE
    assert Counter(cases[0] for cases in dealt) == Counter(2 * list(CASES))
    assert deal(7, 30, KINDS) == dealt[30]
    assert any(len(cases) == 2 for cases in dealt)
    assert {case.kind for number in range(20) for case in deal(7, number, ("reader",))} == {"reader"}
