"""A Redis that lost data, was swapped or cannot be reached: noticed, named, and never written over."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from cdc.errors import ConfigError, ConnectError, PreconditionError, StoreError, StoreLost
from consumers.redis import RedisStore
from consumers.store import Applied
from tests.redis_records import TOPIC, at, batch, change, config, memory


async def test_open_returns_the_offsets_and_they_never_go_back(url: str, redis: Redis, store: RedisStore) -> None:
    await store.apply(batch(change("a", 1, memory("a")), offset=10))
    await store.apply(batch(offset=7))
    second = RedisStore(config(url))
    assert await second.open() == {(TOPIC, 0): 10}
    assert await second.flush(force=True) == {(TOPIC, 0): 10}
    await second.apply(batch(change("b", 2, memory("b")), offset=12))
    await store.check()  # another consumer went further: nothing is lost
    await second.close()


async def test_flushall_is_noticed_by_the_next_apply_and_by_check(store: RedisStore, redis: Redis) -> None:
    await store.apply(batch(change("a", 1, memory("a"))))
    await redis.flushall()
    with pytest.raises(StoreLost):
        await store.apply(batch(change("b", 2, memory("b"))))
    assert not await redis.keys("*")
    with pytest.raises(StoreLost, match="flushed"):
        await store.check()
    assert await store.open() == {}
    await store.check()
    await redis.flushall()
    with pytest.raises(StoreLost):
        await store.truncate(batch(), at(9))


async def test_an_older_copy_is_noticed(store: RedisStore, redis: Redis) -> None:
    await store.apply(batch(change("a", 1, memory("a")), offset=10))
    await redis.hset("cdc:state", f"o:{TOPIC}:0", "9")
    with pytest.raises(StoreLost, match="went back"):
        await store.check()
    with pytest.raises(StoreLost, match="went back"):
        await store.apply(batch(change("b", 2, memory("b")), offset=11))
    assert not await redis.exists("memory:b")
    assert await store.open() == {(TOPIC, 0): 9}


async def test_swap_shows_the_new_store_at_once_and_rollback_the_old(url: str, redis: Redis, store: RedisStore) -> None:
    await store.apply(batch(change("old", 1, memory("old")), offset=5))
    shadow = await store.shadow()
    assert await shadow.open() == {}
    await shadow.apply(batch(change("new", 2, memory("new")), offset=9))
    assert await redis.exists("memory:old", "memory:new") == 1
    await store.swap()
    assert await redis.exists("memory:old") == 0  # a connection that selected the database before
    assert await redis.exists("memory:new") == 1
    with pytest.raises(StoreLost):
        await store.apply(batch(change("late", 3, memory("late")), offset=6))
    with pytest.raises(StoreLost):
        await shadow.apply(batch(change("late", 3, memory("late")), offset=10))
    with pytest.raises(StoreLost, match="swapped"):
        await store.check()
    assert await store.open() == {(TOPIC, 0): 9}
    assert await store.apply(batch(change("late", 3, memory("late")), offset=10)) == Applied(upserts=1)
    with pytest.raises(StoreError, match="no shadow"):
        await store.swap()
    await store.rollback()
    assert await store.open() == {(TOPIC, 0): 5}
    assert await redis.exists("memory:old") == 1
    await shadow.close()
    again = await store.shadow()  # a second rebuild replaces what the first left
    assert await again.open() == {}
    assert await again.count("public", "memories") == 0
    await again.close()


async def test_a_call_lost_by_a_failover_in_the_middle_of_a_batch(url: str, redis: Redis) -> None:
    """Two calls a batch; what the first wrote is lost before the second, together with the offsets it moved."""
    store = RedisStore(config(url, batch=2))
    await store.open()
    await store.apply(batch(change("a", 1, memory("a")), offset=2))
    before = await redis.hgetall("cdc:state")
    call = store._call

    async def loses(*args: Any) -> Applied:
        done = await call(*args)
        await redis.delete("memory:b", "memory:c")
        await redis.hset("cdc:state", mapping=before)  # what a promoted replica holds
        return done

    store._call = loses  # type: ignore[method-assign]
    records = [change(key, lsn, memory(key)) for key, lsn in (("b", 2), ("c", 3), ("d", 4))]
    with pytest.raises(StoreLost, match="went back"):
        await store.apply(batch(*records, offset=5))
    store._call = call  # type: ignore[method-assign]
    assert await store.open() == {(TOPIC, 0): 2}
    await store.apply(batch(*records, offset=5))
    assert await redis.exists("memory:a", "memory:b", "memory:c", "memory:d") == 4
    await redis.hdel("cdc:state", "t:public.memories")  # noted apart from the data, so it may be lost alone
    with pytest.raises(StoreLost, match="noted of"):
        await store.apply(batch(change("e", 6, memory("e")), offset=7))
    await store.close()


async def test_rollback_without_a_rebuild(store: RedisStore) -> None:
    with pytest.raises(StoreError, match="no previous"):
        await store.rollback()


@pytest.mark.parametrize("database", [0, 1])
async def test_foreign_keys_forbid_a_swap(url: str, redis: Redis, store: RedisStore, database: int) -> None:
    await store.apply(batch(change("a", 1, memory("a"))))
    async with Redis.from_url(url.rsplit("/", 1)[0] + f"/{database}") as other:
        await other.set("sessions:1", "x")
        with pytest.raises(PreconditionError, match="sessions:1"):
            await store.shadow()
        assert await other.get("sessions:1") == b"x"


async def test_an_unreachable_server(url: str) -> None:
    store = RedisStore(config("redis://127.0.0.1:1/0"))
    with pytest.raises(ConnectError, match="cannot be reached"):
        await store.open()
    with pytest.raises(ConnectError):
        await store.check()
    await store.close()


async def test_a_wrong_address() -> None:
    with pytest.raises(ConfigError, match="no address"):
        RedisStore(config("http://nowhere"))


async def test_errors_of_the_server_have_remedies(url: str, redis: Redis, store: RedisStore) -> None:
    await redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(ConnectError, match="maxmemory"):
            await store.apply(batch(change("a", 1, memory("a"))))
    finally:
        await redis.config_set("maxmemory", "0")
    await redis.config_set("requirepass", "sesame")
    try:
        locked = RedisStore(config(url))
        with pytest.raises(ConnectError, match="password"):
            await locked.open()
        wrong = RedisStore(config(url, password="open"))
        with pytest.raises(ConnectError, match="password"):
            await wrong.open()
        right = RedisStore(config(url, password="sesame"))
        assert await right.open() == {}
        for each in (locked, wrong, right):
            await each.close()
    finally:
        await redis.config_set("requirepass", "")
    await redis.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(ConnectError, match="primary"):
            await store.apply(batch(change("a", 1, memory("a"))))
    finally:
        await redis.replicaof("NO", "ONE")


async def test_scripts_are_loaded_again(store: RedisStore, redis: Redis) -> None:
    await redis.script_flush()
    assert await store.apply(batch(change("a", 1, memory("a")))) == Applied(upserts=1)
