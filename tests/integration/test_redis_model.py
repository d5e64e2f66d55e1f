"""Deliveries in any order and any number against a model of what a Redis store holds in the end."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from consumers.redis import RedisStore, keys_for
from consumers.store import Record, Version
from tests.redis_records import VECTOR, at, batch, change, config, encoded_key, memory

KEYS = st.sampled_from(["a", "b:1", "by_user", "d%"])
WRITES = st.tuples(
    KEYS, st.one_of(st.none(), st.sampled_from(["ann", "bob", None, "x:y"])), st.booleans(), st.integers()
)
HISTORIES = st.lists(WRITES, min_size=1, max_size=25)


@settings(max_examples=60, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=HISTORIES, data=st.data())
def test_any_delivery_ends_at_the_model(url: str, history: list[Any], data: st.DataObject) -> None:
    """Deliveries are repeated and, within a key, replayed from any earlier point; the end is always the last write."""
    records, model = [], {}
    for lsn, (key, user, deleted, number) in enumerate(history, start=1):
        row = None if deleted else memory(key, user_id=user, n=number, extra="x" if number % 2 else None)
        records.append(change(key, lsn, row))
        model[key] = (lsn, row)
    replays = data.draw(st.lists(st.integers(0, len(records)), max_size=3))
    delivered = [r for start in (*replays, 0) for r in data.draw(st.permutations(records[start:]))]
    sizes = data.draw(st.integers(1, 7))
    asyncio.run(_equal_after(url, delivered, model, sizes))


async def _equal_after(url: str, delivered: list[Record], model: dict[str, Any], size: int) -> None:
    async with Redis.from_url(url, decode_responses=True) as client:
        await client.flushall()
        store = RedisStore(config(url, batch=3))
        await store.open()
        for start in range(0, len(delivered), size):
            await store.apply(batch(*delivered[start : start + size], offset=start + 1))
        live = {key: at(lsn) for key, (lsn, row) in model.items() if row is not None}
        assert {key async for key in store.scan("public", "memories")} == {(encoded_key(k), p) for k, p in live.items()}
        assert await store.count("public", "memories") == len(live)
        indexed = set()
        for key, (lsn, row) in model.items():
            name = keys_for(store.config, "public", "memories", encoded_key(key))
            [version] = await store.versions("public", "memories", [encoded_key(key)])
            assert version == Version(at(lsn), VECTOR, deleted=row is None)
            held = await client.hgetall(name)
            expected = {} if row is None else {k: str(v) for k, v in row.items() if v is not None}
            assert {k: v for k, v in held.items() if not k.startswith("_")} == expected
            if row is not None and row["user_id"] is not None:
                indexed.add(("memory:by_user:" + row["user_id"].replace(":", "%3A"), name))
        found = {(i, m) for i in await client.keys("memory:by_user:*") for m in await client.zrange(i, 0, -1)}
        assert found == indexed
        await store.close()
