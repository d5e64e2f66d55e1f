"""The keys of Redis: which names they have, and what happens when a table's key or its template changes."""

from __future__ import annotations

import msgspec
import pytest
from redis.asyncio import Redis

from cdc.config import Config
from cdc.errors import ConfigError, ConnectError, StoreError, StoreLost
from consumers.redis import RedisStore, keys_for
from consumers.store import Applied, Record
from tests.redis_records import TABLES, at, batch, change, config, memory, tombstone


async def test_keys_are_readable_and_unambiguous(url: str, redis: Redis) -> None:
    tables = {"public.hashed": {"redis_key": "note:{{{tenant}}}:{id}"}}
    store = RedisStore(config(url, tables))
    await store.open()
    keys = [{"tenant": "a:b", "id": "c"}, {"tenant": "a", "id": "b:c"}, {"tenant": "50%", "id": "é"}]
    numbers = [{"id": 7}, {"id": -12345678901234567890}, {"id": "7"}]
    await store.apply(batch(*(change(k, 1, k) for k in keys), table="pairs"))
    await store.apply(batch(*(change(k, 1, k) for k in keys), table="hashed"))
    await store.apply(batch(*(change(k, i, k) for i, k in enumerate(numbers)), table="plain"))
    assert set(await redis.keys("pairs:*")) == {"pairs:a%3Ab:c", "pairs:a:b%3Ac", "pairs:50%25:é"}
    assert set(await redis.keys("note:*")) == {"note:{a%3Ab}:c", "note:{a}:b%3Ac", "note:{50%25}:é"}
    assert set(await redis.keys("plain:*")) == {"plain:7", "plain:-12345678901234567890"}
    for table, expected in (("pairs", keys), ("hashed", keys), ("plain", [numbers[1], numbers[2]])):
        found = {key async for key, _ in store.scan("public", table)}
        assert found == {msgspec.json.encode(key) for key in expected}
        for key in found:
            assert await redis.exists(keys_for(store.config, "public", table, key))
    await store.close()


async def test_key_bytes_come_back_as_they_were(store: RedisStore) -> None:
    odd = rb'{"id":"\u0041\/x"}'
    record = change("unused", 1, memory("A/x"))._replace(key=odd)
    await store.apply(batch(record, change("plain", 2, memory("plain"))))
    assert {key async for key, _ in store.scan("public", "memories")} == {odd, b'{"id":"plain"}'}


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("memory", "name each key column"),
        ("{id}", "our own keys"),
        ("cdc:{id}", "our own keys"),
        ("memory:{id", "no template"),
        ("memory:{id!r}", "no template"),
        ("memory:{other}", "name each key column"),
    ],
)
async def test_a_wrong_template_is_refused(url: str, redis: Redis, template: str, told: str) -> None:
    store = RedisStore(config(url, {"public.memories": {"redis_key": template}}))
    await store.open()
    with pytest.raises(ConfigError, match=told):
        await store.apply(batch(change("a", 1, memory("a"))))
    await store.close()


async def test_two_tables_never_share_keys(url: str, redis: Redis, store: RedisStore) -> None:
    await store.apply(batch(change("a", 1, memory("a"))))
    tables = {
        **TABLES,
        "public.other": {"redis_key": "memory:by_user:{id}"},
        "public.third": {"redis_key": "memory:{k}"},
    }
    for table, key in (("other", {"id": "ann"}), ("third", {"k": "a"})):
        second = RedisStore(config(url, tables))
        await second.open()
        with pytest.raises(StoreError, match="share Redis keys"):
            await second.apply(batch(change(key, 2, key), table=table))
        await second.close()


async def test_a_changed_template_needs_a_rebuild(url: str, redis: Redis, store: RedisStore) -> None:
    await store.apply(batch(change("a", 1, memory("a"))))
    second = RedisStore(config(url, {"public.memories": {"redis_key": "mem:{id}"}}))
    await second.open()
    with pytest.raises(StoreError, match="rebuild"):
        await second.apply(batch(change("a", 2, memory("a"))))
    await second.close()


def keyed(rank: int, lsn: int) -> Record:
    """A record of the time after the table's key became `rank`."""
    return change({"rank": rank}, lsn, {"id": f"m{rank}", "rank": rank})


def row(id: int, lsn: int) -> Record:
    return change(id, lsn, {"id": id, "rank": id})


@pytest.fixture
def plain(url: str, redis: Redis) -> Config:
    """No template: key names follow the key columns, so that those of both keys look the same."""
    return config(url, tables={})


async def held(redis: Redis) -> dict[str, str]:
    """Redis key → position."""
    return {key: await redis.hget(key, "_pos") for key in sorted(await redis.keys("memories:*"))}


async def test_another_key_replaces_the_one_before_in_any_order(plain: Config, redis: Redis) -> None:
    """The layout of the highest position wins; what is older is stale, never a dead letter."""
    store = RedisStore(plain)
    await store.open()
    await store.apply(batch(row(1, 1), row(2, 2), row(3, 3)))
    assert await store.apply(batch(row(4, 4), keyed(2, 11), row(5, 5), keyed(7, 10))) == Applied(upserts=2, stale=2)
    new = {"memories:2": at(11).decode(), "memories:7": at(10).decode()}
    assert await held(redis) == new
    gone = change(2, 7, None)
    gone = gone._replace(value=(gone.value or b"").replace(b'"before":null', b'"before":{"id":2}'))
    assert await store.apply(batch(row(9, 6), gone, tombstone(2, 7))) == Applied(stale=3)
    assert await store.apply(batch(keyed(8, 9))) == Applied(upserts=1)
    assert await store.apply(batch(row(1, 12))) == Applied(upserts=1)
    assert await held(redis) == {"memories:1": at(12).decode()}
    assert await store.count("public", "memories") == 1
    await store.close()
    assert await store.open() == {("memories.public.memories", 0): 1}
    assert await store.apply(batch(keyed(2, 11))) == Applied(stale=1)
    await store.close()


async def test_members_agree_on_another_key(plain: Config, redis: Redis) -> None:
    """A member that was behind is told to open anew, and finds the other's layout."""
    ahead, behind = RedisStore(plain), RedisStore(plain)
    await ahead.open()
    await behind.open()
    await ahead.apply(batch(row(1, 1)))
    await behind.close()
    await behind.open()
    await behind.apply(batch(row(2, 2)))
    await ahead.apply(batch(keyed(5, 20)))
    with pytest.raises(StoreLost, match="key layout"):
        await behind.apply(batch(row(3, 3)))
    await behind.open()
    assert await behind.apply(batch(row(3, 3), keyed(6, 15))) == Applied(upserts=1, stale=1)
    assert list(await held(redis)) == ["memories:5", "memories:6"]
    await ahead.close()
    await behind.close()


async def test_a_crash_before_old_rows_are_removed_is_mended_by_the_next_open(
    plain: Config, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisStore(plain)
    await store.open()
    await store.apply(batch(row(1, 1), row(2, 2)))
    monkeypatch.setattr(RedisStore, "_clear", failing)
    with pytest.raises(ConnectError):
        await store.apply(batch(keyed(5, 20)))
    monkeypatch.undo()
    await store.close()
    assert list(await held(redis)) == ["memories:1", "memories:2"]
    await store.open()
    assert await held(redis) == {}
    assert await store.apply(batch(row(2, 2), keyed(5, 20))) == Applied(upserts=1, stale=1)
    assert not [field for field in await redis.hkeys("cdc:state") if field.startswith("w:")]
    await store.close()


async def failing(_store: RedisStore) -> None:
    raise ConnectError("the process is gone")


async def test_a_template_that_does_not_fit_another_key_stops(store: RedisStore) -> None:
    await store.apply(batch(change("a", 1, memory("a"))))
    with pytest.raises(ConfigError, match="has to name each key column once: rank"):
        await store.apply(batch(keyed(1, 5)))
