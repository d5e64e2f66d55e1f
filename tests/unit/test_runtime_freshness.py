"""Freshness by heartbeats: only what is reached counts, nothing moves backwards, memory is bounded."""

from __future__ import annotations

import time

import pytest
from prometheus_client import REGISTRY

from cdc.config import Config, parse
from cdc.position import Position
from consumers.freshness import PENDING, Freshness, Heartbeat

A, B = ("m.public.a", 0), ("m.public.a", 1)


@pytest.fixture
def freshness() -> Freshness:
    config: Config = parse({"postgres": {"dsn": "dbname=x"}, "kafka": {"bootstrap": "x", "prefix": "m"}})
    return Freshness(config, "unit")


def beat(second: int, *ends: int, topic: str = "m.public.a") -> Heartbeat:
    """A heartbeat at a second of 1970."""
    return Heartbeat(second * 1_000_000, Position(1, second, 0).encode().decode(), {topic: list(ends)})


def ours(topic: str) -> bool:
    return topic.startswith("m.public.")


def test_all_partitions_have_to_be_there(freshness: Freshness) -> None:
    freshness.heard(beat(1, 10, 20))
    freshness.heard(beat(2, 11, 20))
    assert freshness.reached({A: 9, B: 99}, ours, {A[0]})
    assert freshness.at is None
    freshness.reached({A: 10, B: 20}, ours, {A[0]})
    assert (freshness.at, freshness.position) == (1.0, Position(1, 1, 0).encode())
    freshness.reached({A: 12, B: 20}, ours, {A[0]})
    assert freshness.at == 2.0


def test_partitions_of_others_do_not_matter(freshness: Freshness) -> None:
    freshness.heard(beat(1, 10, 20))
    freshness.reached({B: 20}, ours, {A[0]})
    assert freshness.at == 1.0


def test_a_topic_not_yet_found_holds_it_back(freshness: Freshness) -> None:
    freshness.heard(beat(1, 1, topic="m.public.new"))
    assert not freshness.reached({A: 5}, ours, {A[0]})
    assert freshness.at is None
    freshness.heard(beat(2, 1))
    assert freshness.reached({A: 5, ("m.public.new", 0): 1}, ours, {A[0], "m.public.new"})
    assert freshness.at == 2.0


def test_topics_that_we_do_not_read_do_not_hold_it_back(freshness: Freshness) -> None:
    freshness.heard(Heartbeat(1_000_000, Position(1, 1, 0).encode().decode(), {A[0]: [3], "m.other.x": [9]}))
    assert freshness.reached({A: 3}, ours, {A[0]})
    assert freshness.at == 1.0


def test_it_never_moves_backwards(freshness: Freshness) -> None:
    freshness.heard(beat(5, 1))
    freshness.heard(beat(3, 2))
    freshness.reached({A: 2}, ours, {A[0]})
    assert freshness.at == 5.0
    assert freshness.position == Position(1, 5, 0).encode()


def test_who_owns_nothing_shows_nothing(freshness: Freshness) -> None:
    freshness.heard(beat(1, 1))
    freshness.reached({A: 1}, ours, {A[0]})
    name = "cdc_store_applied_timestamp_seconds"
    assert REGISTRY.get_sample_value(name, {"store": "unit"}) == 1.0
    freshness.reached({}, ours, {A[0]})
    assert REGISTRY.get_sample_value(name, {"store": "unit"}) is None


def test_lag_is_never_negative(freshness: Freshness) -> None:
    assert freshness.age() is None
    freshness.heard(beat(int(time.time()) + 3600, 1))
    freshness.reached({A: 1}, ours, {A[0]})
    assert freshness.age() == 0.0


def test_pending_heartbeats_are_bounded(freshness: Freshness) -> None:
    for number in range(1, 20 * PENDING):
        freshness.heard(beat(number, number))
        assert len(freshness._pending) <= PENDING
    freshness.reached({A: 20 * PENDING}, ours, {A[0]})
    assert freshness.at == 20 * PENDING - 1  # the newest is kept


def test_heartbeats_of_a_log_that_is_no_more_hold_nothing_up(freshness: Freshness) -> None:
    """The topic was made anew and is shorter than it was: the old ends are never reached."""
    freshness.heard(beat(1, 100, 200))
    freshness.heard(beat(2, 5, 6))
    freshness.reached({A: 5, B: 6}, ours, {A[0]})
    assert freshness.at == 2.0
