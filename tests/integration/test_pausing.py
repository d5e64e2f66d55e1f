"""Standing still because somebody wants it: nothing is applied or sent, nothing is lost, also over a restart."""

from __future__ import annotations

import time
from pathlib import Path

import psycopg
import pytest
from prometheus_client import REGISTRY

from cdc.config import Config
from cdc.embedded import Endpoints
from cdc.errors import PreconditionError, StoreError
from cdc.source.slot import Slot, read_slot
from cdc.wishes import Component, Wish, Wishes, make_wish, read_wishes
from tests.comparison import assert_equal_everywhere
from tests.pipeline import MEMORIES, Running, config_of, pipeline, source
from tests.waiting import until

INSERT = "INSERT INTO memories (id, embedding) SELECT n, ARRAY[n, 1] FROM generate_series(%s::int, %s::int) n"


@pytest.fixture
def config(servers: Endpoints, dsn: str, tmp_path: Path) -> Config:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(MEMORIES)
    return config_of(servers, dsn, tmp_path)


async def wished(config: Config, component: Component, paused: bool) -> None:
    await make_wish(config.kafka, component, Wish(paused, "a test", time.time(), "to see"))


def insert(config: Config, first: int, last: int) -> None:
    with source(config) as connection:
        connection.execute(INSERT.encode(), [first, last])


def slot_of(config: Config) -> Slot:
    with source(config) as connection:
        slot = read_slot(connection, config.postgres.slot)
    assert slot is not None
    return slot


async def counts(running: Running) -> tuple[int, int]:
    """Records in Redis and in the index."""
    return await running.memory.count("public", "memories"), await running.index.count("public", "memories")


def lag(store: str) -> float | None:
    return REGISTRY.get_sample_value("cdc_store_offset_lag_records", {"store": store})


async def counted(running: Running, wanted: tuple[int, int]) -> bool:
    try:
        return await counts(running) == wanted
    except StoreError:
        return False  # an index that is not loaded yet


async def test_a_store_stands_still_and_keeps_its_partitions(config: Config) -> None:
    insert(config, 1, 20)
    async with pipeline(config) as running:
        await running.caught_up()
        redis = running.consumers["redis"]
        owned = redis.partitions.owned
        generation = redis.partitions.consumer._coordinator.generation
        await wished(config, "redis", True)
        await until(lambda: redis._wishes.stills("redis"), "Redis' consumer heard it")
        before = time.time()
        insert(config, 21, 40)
        await until(lambda: counted(running, (20, 40)), "the index alone has the new rows")
        insert(config, 41, 60)
        await until(lambda: counted(running, (20, 60)), "the index alone has more rows")
        assert redis.freshness.at is not None
        assert redis.freshness.at <= before  # it does not claim to be fresh
        await until(lambda: (lag("redis") or 0) >= 40, "its lag grows all the same")
        assert (redis.partitions.owned, redis.partitions.consumer._coordinator.generation) == (owned, generation)
        await wished(config, "redis", False)
        await running.caught_up()
        await assert_equal_everywhere(running)


async def test_a_reader_stands_still_and_holds_its_slot(config: Config) -> None:
    insert(config, 1, 20)
    async with pipeline(config) as running:
        await running.caught_up()
        await wished(config, "reader", True)
        await until(lambda: running.source.reader._wishes.stills("reader"), "the reader heard it")
        stood = running.source.reader.progress
        insert(config, 21, 40)
        before = slot_of(config)
        await running.restart()  # it stays paused
        await until(lambda: running.source.reader._wishes.known, "the next reader knows it too")
        await until(lambda: slot_of(config).active, "the slot is held")
        insert(config, 41, 60)
        now = slot_of(config)
        assert stood is not None
        assert now.confirmed_lsn <= max(before.confirmed_lsn, stood.end_lsn)
        assert now.retained_bytes > before.retained_bytes
        assert await counts(running) == (20, 20)
        await wished(config, "reader", False)
        await running.caught_up()
        await assert_equal_everywhere(running)


async def test_a_store_stays_paused_over_a_restart(config: Config) -> None:
    insert(config, 1, 20)
    async with pipeline(config) as running:
        await running.caught_up()
    await wished(config, "faiss", True)
    assert (await read_wishes(config.kafka))["faiss"].said == "paused by a test (to see)"
    insert(config, 21, 40)
    async with pipeline(config) as running:
        await until(lambda: counted(running, (40, 20)), "Redis alone has the new rows")
        await wished(config, "faiss", False)
        await running.caught_up()
        await assert_equal_everywhere(running)


async def test_without_a_topic_nobody_is_paused(config: Config) -> None:
    """No reader has ever run: a wish is refused, and nobody waits for one."""
    with pytest.raises(PreconditionError, match="does not exist yet"):
        await wished(config, "redis", True)
    assert await read_wishes(config.kafka) == {}
    wishes = Wishes(config.kafka, "redis")
    async with pipeline(config) as running:
        await until(lambda: running.consumers["redis"]._wishes.known, "it is known that nobody wished anything")
    assert wishes.stills("redis")  # as long as nobody has looked
