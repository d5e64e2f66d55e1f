"""The gateway's small parts: the key, the rate, and answers that are kept for a while."""

from __future__ import annotations

import asyncio

import pytest

from cdc.commands.gateway_keys import values_of
from cdc.config import Config, parse
from cdc.errors import ConfigError, ConnectError
from consumers.freshness import Heartbeat
from consumers.gateway import keys
from consumers.gateway.cached import Cached
from consumers.gateway.keys import AdminKey, Rate
from consumers.gateway.timeline import Place, Timeline

KEY = "a key of more than sixteen characters"
TOPIC = "m.public.memories"


@pytest.mark.parametrize("given", [None, "", KEY[:-1], KEY + " ", KEY.upper()])
def test_only_the_key_opens(given: str | None) -> None:
    assert AdminKey(KEY).opens(KEY)
    assert not AdminKey(KEY).opens(given)


@pytest.mark.parametrize("given", [None, "", "None", KEY])
def test_without_a_key_nothing_opens(given: str | None) -> None:
    assert not AdminKey(None).there
    assert not AdminKey(None).opens(given)


def test_a_key_is_long_and_never_shown() -> None:
    base = {"postgres": {"dsn": "dbname=x"}, "kafka": {"bootstrap": "x"}}
    with pytest.raises(ConfigError) as refused:
        parse({**base, "gateway": {"admin_key": "too short"}})
    assert "too short" not in str(refused.value)
    assert KEY not in repr(parse({**base, "gateway": {"admin_key": KEY}}))


def test_the_rate_is_by_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(keys.time, "monotonic", lambda: now)
    rate = Rate(2)
    assert [rate.wait("a") for _ in range(2)] == [0, 0]
    now += 10
    assert rate.wait("a") == 50
    assert rate.wait("b") == 0
    now += 50.5
    assert rate.wait("a") == 0


def test_origins_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "ORIGINS", 10)
    rate = Rate(1)
    for number in range(100):
        assert rate.wait(str(number)) == 0
    assert len(rate._calls) == 10


async def test_one_question_answers_all_who_wait() -> None:
    asked = 0

    async def ask() -> int:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return asked

    cached = Cached(ask, 3600)
    assert [answer.value for answer in await asyncio.gather(*(cached.get() for _ in range(5)))] == [1] * 5
    assert (await cached.get(fresh=True)).value == 2
    assert (await cached.get()).value == 2


async def test_an_answer_that_failed_is_a_reason_and_no_older_value() -> None:
    away = False

    async def ask() -> int:
        if away:
            raise ConnectError("it is away", hint="start it")
        return 1095

    cached = Cached(ask, 0)
    assert (await cached.get()).value == 1095
    away = True
    failed = await cached.get(fresh=True)
    assert (failed.value, failed.reason) == (None, "it is away → start it")


@pytest.mark.parametrize("identity", ['{"a":1}', '{"a":1,"b":2,"c":3}', "7", "[1,2]", '{"a":1,"b":null}', "{" * 9999])
def test_a_key_of_several_columns_is_an_object_of_all_of_them(identity: str) -> None:
    assert values_of('{"a":1,"b":"x"}', ["a", "b"]) == {"a": "1", "b": "x"}
    assert values_of('{"a":1}', ["id"]) == {"id": '{"a":1}'}
    with pytest.raises(ConfigError, match="the key of this table is a, b"):
        values_of(identity, ["a", "b"])


@pytest.fixture
def config() -> Config:
    return parse({"postgres": {"dsn": "dbname=x"}, "kafka": {"bootstrap": "x", "prefix": "m"}})


async def test_a_store_is_as_fresh_as_the_newest_heartbeat_it_has_reached(config: Config) -> None:
    timeline = Timeline(config)
    assert timeline.place({}, ["public.memories"]) == Place()
    for second in range(1, 4):
        position = f"00000001{second:016x}00000000"
        timeline.heard(Heartbeat(second * 1_000_000, position, {TOPIC: [10 * second, 5]}))
    assert timeline.tables() == ["public.memories"]
    assert timeline.place({(TOPIC, 0): 30, (TOPIC, 1): 5}, ["public.memories"]) == Place(3.0, "0/3", position)
    assert timeline.place({(TOPIC, 0): 29, (TOPIC, 1): 5}, ["public.memories"]).fresh_until == 2.0
    assert timeline.place({(TOPIC, 0): 30}, ["public.memories"]).fresh_until is None  # of one partition nothing came
    assert timeline.before(2.5) == {TOPIC: [20, 5]}
    assert timeline.past(3)
    assert not timeline.past(4)


async def test_a_log_that_is_no_more_is_forgotten(config: Config) -> None:
    timeline = Timeline(config)
    timeline.heard(Heartbeat(1_000_000, "0" * 32, {TOPIC: [100]}))
    timeline.heard(Heartbeat(2_000_000, "0" * 32, {TOPIC: [3]}))  # the topic was made anew
    assert timeline.place({(TOPIC, 0): 2}, ["public.memories"]).fresh_until is None
    assert timeline.place({(TOPIC, 0): 3}, ["public.memories"]).fresh_until == 2.0
