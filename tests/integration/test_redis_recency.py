"""Recency indexes beside their records: what is wrong is told by its key, and nothing that only moved."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from consumers.marks import ahead
from consumers.redis import RedisStore
from consumers.redis.recency import Recency, Stranger
from tests import redis_records
from tests.redis_records import TABLES, at, batch, change, encoded_key, memory

ANN, BOB = "memory:by_user:ann", "memory:by_user:b%20b"


async def recency_of(store: RedisStore) -> Recency:
    found = await store.recency("public", "memories")
    assert found is not None
    return found


@pytest.fixture
async def filled(store: RedisStore) -> RedisStore:
    rows = [memory(f"a{n}", created_at=f"2025-01-0{n}T00:00:00Z") for n in range(1, 6)]
    rows += [memory(f"b{n}", user_id="b b", created_at=None) for n in range(1, 4)]
    await store.apply(batch(*(change(row["id"], n, row) for n, row in enumerate(rows, 1)), change("nobody", 20, {"id": "nobody", "user_id": None, "created_at": None})))  # fmt: skip  # noqa: E501
    return store


async def test_what_was_applied_is_in_order(filled: RedisStore) -> None:
    recency = await recency_of(filled)
    assert (await recency.misplaced(), await recency.strangers()) == ([], [])


async def test_what_is_absent_or_has_another_score_is_told(filled: RedisStore, redis: Redis) -> None:
    await redis.zrem(ANN, "memory:a1", "memory:a3")
    await redis.zincrby(BOB, 1, "memory:b2")
    await redis.delete("memory:by_user:nobody")
    recency = await recency_of(filled)
    assert sorted(await recency.misplaced()) == [encoded_key(key) for key in ("a1", "a3", "b2")]
    await redis.set(ANN, "no index")
    found = await recency.misplaced()
    assert sorted(found) == [encoded_key(key) for key in ("a1", "a2", "a3", "a4", "a5", "b2")]


async def test_strangers_are_told_and_removed(filled: RedisStore, redis: Redis) -> None:
    await redis.zadd(ANN, {"memory:b1": 1, "memory:gone": 2, "rubbish": 3})
    recency = await recency_of(filled)
    wanted = {
        Stranger(encoded_key("b1"), live=True), Stranger(encoded_key("gone"), live=False), Stranger(b"rubbish", False)
    }  # fmt: skip
    assert set(await recency.strangers()) == wanted
    assert set(await recency.strangers(remove=True)) == wanted
    assert await recency.strangers() == []
    assert await redis.zrange(ANN, 0, -1) == [f"memory:a{n}" for n in range(1, 6)]


async def test_what_an_index_of_limited_size_has_dropped_is_in_order(url: str, redis: Redis) -> None:
    store = RedisStore(redis_records.config(url, recency_limit=3))
    await store.open()
    rows = [memory(f"a{n}", created_at=f"2025-01-0{n}T00:00:00Z") for n in range(1, 6)]
    await store.apply(batch(*(change(row["id"], n, row) for n, row in enumerate(rows, 1))))
    recency = await recency_of(store)
    assert await recency.misplaced() == []
    await redis.zrem(ANN, "memory:a4")  # newer than the least one there
    assert await recency.misplaced() == [encoded_key("a4")]
    await store.close()


async def test_a_table_whose_records_expire_leaves_members_behind(url: str, redis: Redis) -> None:
    tables: dict[str, Any] = {"public.memories": {**TABLES["public.memories"], "ttl_seconds": 100}}
    store = RedisStore(redis_records.config(url, tables))
    await store.open()
    await store.apply(batch(change("a1", 1, memory("a1"))))
    await redis.delete("memory:a1")  # as if it had expired
    assert await (await recency_of(store)).strangers() == []
    await store.close()


async def test_a_record_that_claims_the_future_takes_the_next_one_again(filled: RedisStore, redis: Redis) -> None:
    await redis.hset("memory:a1", "_pos", "f" * 32)
    await redis.set("cdc:tomb:memory:a9", "f" * 32 + "{}")
    keys = [encoded_key(key) for key in ("a1", "a2", "a9")]
    newer = batch(*(change(key, 50, memory(key, content="new")) for key in ("a1", "a9")))
    assert (await filled.apply(newer)).stale == 2
    assert await filled.lower("public", "memories", keys, at(40)) == 2
    assert (await filled.apply(newer)).upserts == 2
    assert await redis.hget("memory:a2", "_pos") == at(2).decode()


async def test_marks_ahead_of_the_truth(filled: RedisStore, redis: Redis) -> None:
    topic = redis_records.TOPIC
    ends = {(topic, 0): 100}
    offsets, positions = await filled.marks("public", "memories")
    assert ahead("redis", offsets, ends, positions, at(60)) == []
    await redis.hset("cdc:state", mapping={f"o:{topic}:0": 101, "f:public.memories": "f" * 32})
    offsets, positions = await filled.marks("public", "memories")
    found = ahead("redis", offsets, ends, positions, at(60))
    assert [sentence.split(" that ")[0] for sentence in found] == ["the offset", "the floor"]
    assert all("cdc rebuild redis" in sentence for sentence in found)
