"""A store that is found empty at start, or in part, fills itself, whatever its group has committed.

What is lost while a consumer runs: tests/crash/test_redis.py and test_faiss.py; topics that were lost: test_topics.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from cdc.config import Config
from cdc.embedded import Endpoints
from cdc.kafka.partitioner import partitions
from consumers.redis.sentinel import key_of, offset_field
from tests.chance import seeded
from tests.crash.stores import NAME, Table, becomes_equal, committed, consuming, database, settings, table

ROWS = 300
DATABASE = 11
PARTITIONS = 3


@pytest.fixture
def url(servers: Endpoints) -> Iterator[str]:
    """An empty Redis database."""
    address = database(servers.redis_url, DATABASE)
    with redis.Redis.from_url(address) as client:
        client.flushdb()
        yield address
        client.flushdb()


def emptied(config: Config) -> None:
    with redis.Redis.from_url(config.redis.url) as client:
        client.flushdb()


def without_its_sentinel(config: Config) -> None:
    with redis.Redis.from_url(config.redis.url) as client:
        client.delete(key_of(config.redis.namespace))


def without_some_marks(config: Config) -> None:
    """Of two partitions of three, with their rows."""
    topic = config.kafka.table_topic(*NAME)
    with redis.Redis.from_url(config.redis.url) as client:
        client.hdel(key_of(config.redis.namespace), offset_field((topic, 0)), offset_field((topic, 2)))
        names = list(client.scan_iter("memories:*"))
        places = partitions([b'{"id":%b}' % name.partition(b":")[2] for name in names], PARTITIONS)
        client.delete(*[name for name, place in zip(names, places, strict=True) if place != 1])
        assert client.keys("memories:*")


def without_its_folder(config: Config) -> None:
    shutil.rmtree(config.faiss.path)


def without_its_snapshots(config: Config) -> None:
    for snapshot in config.faiss.path.glob("gen-*/snapshot-*"):
        shutil.rmtree(snapshot)


def with_a_torn_snapshot(config: Config) -> None:
    for manifest in config.faiss.path.glob("gen-*/snapshot-*/manifest*"):
        manifest.write_bytes(manifest.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("kind", "harm"),
    [
        ("redis", emptied), ("redis", without_its_sentinel), ("redis", without_some_marks),
        ("faiss", without_its_folder), ("faiss", without_its_snapshots), ("faiss", with_a_torn_snapshot),
    ],
    ids=lambda each: each if isinstance(each, str) else each.__name__,
)  # fmt: skip
async def test_what_was_lost_while_nobody_looked(
    servers: Endpoints, url: str, tmp_path: Path, kind: str, harm: Callable[[Config], None]
) -> None:
    """The group's offsets are at the end by then: whoever went by them would wait for new records for ever."""
    async with table(settings(servers.kafka_bootstrap, url, tmp_path), seeded()) as made:
        await made.insert(ROWS)
        async with consuming(made.config, kind) as consumer:
            await consumer.caught_up(made)
        harm(made.config)
        assert await at_the_end(made, kind)
        async with consuming(made.config, kind) as consumer:
            await becomes_equal(made, consumer)
            await made.change()
            await becomes_equal(made, consumer)


async def at_the_end(made: Table, kind: str) -> bool:
    """What the group has committed."""
    return await committed(made.config, kind) == await made.ends()
