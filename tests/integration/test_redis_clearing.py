"""Emptying our part of Redis: it fills again by itself; nothing else is touched, nothing concurrent is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest
import redis

from cdc.commands.cache import cleared
from cdc.embedded import Endpoints
from cdc.errors import PreconditionError, StoreError, StoreLost
from consumers.redis import RedisStore
from consumers.redis.clearing import clear, refilled
from tests.comparison import assert_equal_everywhere
from tests.pipeline import MEMORIES, config_of, pipeline, source
from tests.redis_records import TOPIC, batch, change, config, memory

NOTES = (
    "CREATE TABLE notes (id integer PRIMARY KEY, body text); INSERT INTO notes SELECT n FROM generate_series(1, 30) n"
)
ROWS = "INSERT INTO memories (id, embedding) SELECT n, ARRAY[n, 1] FROM generate_series(1, 300) n"


async def test_it_fills_again_while_rows_change(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"{MEMORIES}; {NOTES}; {ROWS}")
    config = config_of(servers, dsn, tmp_path, postgres={"tables": ["public.memories", "public.notes"]})
    stages: list[tuple[str, int, int]] = []
    async with pipeline(config) as running:
        await running.caught_up()
        with redis.Redis.from_url(config.redis.url) as client, source(config) as writing:
            client.hset("memory:1", "_pos", "0" * 32)
            client.set("somebody's", "value")
            foreign = {b"memory:1", b"somebody's"}
            work = asyncio.ensure_future(cleared(config, "public.memories", lambda *said: stages.append(said)))
            for key in range(1, 61):  # while it is emptied and filled
                writing.execute("UPDATE memories SET who = 'changed' WHERE id = %s", [key])
                writing.execute("DELETE FROM memories WHERE id = %s", [300 - key])
                await asyncio.sleep(0)
            found = await work
            assert found["tables"].keys() == {"public.memories"}
            assert found["tables"]["public.memories"]["before"] > 0
            assert stages[-1][1] == stages[-1][2] > 0
            await running.caught_up()
            await assert_equal_everywhere(running)
            assert await running.memory.count("public", "notes") == 30
            assert foreign <= set(client.keys())
            every = await cleared(config, None, lambda *said: None)
            assert every["tables"] == {
                "public.memories": {"before": 240, "after": 240}, "public.notes": {"before": 30, "after": 30},
            }  # fmt: skip
            assert foreign <= set(client.keys())


async def test_one_step_makes_it_another_store(url: str, redis: redis.asyncio.Redis, store: RedisStore) -> None:
    settings = config(url)
    await store.apply(batch(change("a", 1, memory("a")), offset=5))
    await redis.hset("memory:a:b", "_pos", "0" * 32)  # no key of our table
    wanted = await clear(store.link, settings)
    assert wanted == {(TOPIC, 0): 5}
    assert await redis.exists("memory:a")  # until a consumer has seen it
    with pytest.raises(StoreLost):
        await store.apply(batch(change("b", 2, memory("b")), offset=6))
    assert not await refilled(store.link, settings, wanted, lambda *said: None)
    assert await store.open() == {}
    assert (await redis.exists("memory:a"), await redis.exists("memory:a:b")) == (0, 1)
    await store.apply(batch(change("a", 1, memory("a")), offset=5))
    assert await refilled(store.link, settings, wanted, lambda *said: None)


async def test_what_another_member_has_filled_again_stays(
    url: str, redis: redis.asyncio.Redis, store: RedisStore
) -> None:
    """Two members open at once: the slower one's removal ends where the faster one's did."""
    await store.apply(batch(change("a", 1, memory("a")), offset=5))
    await clear(store.link, config(url))
    slow = RedisStore(config(url))
    clearing, slow._clear = slow._clear, lambda: asyncio.sleep(0)  # type: ignore[method-assign]
    await slow.open()  # has read the mark, and has not removed anything yet
    await store.open()
    await store.apply(batch(change("a", 1, memory("a")), offset=5))
    await clearing()
    assert await redis.exists("memory:a")
    await slow.close()


async def test_what_cannot_be_emptied_is_said(url: str, redis: redis.asyncio.Redis, store: RedisStore) -> None:
    await store.apply(batch(change("a", 1, memory("a")), offset=5))
    with pytest.raises(PreconditionError, match=r"nothing of public\.other"):
        await clear(store.link, config(url), "public.other")
    await redis.flushall()
    with pytest.raises(StoreError, match="nothing of ours"):
        await clear(store.link, config(url))
