"""What several of these modules start from: decoders over a database, the topics of a prefix, an empty Redis."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from redis.asyncio import Redis

from cdc.config import Config, parse
from cdc.embedded import Endpoints, Servers
from consumers.redis import RedisStore
from tests import redis_records
from tests.decoding import Decoding, dropped
from tests.topic_writer import TopicWriter


@pytest.fixture
def clean_database(database: str) -> str:
    """The module's database with an empty schema public."""
    with psycopg.connect(database, autocommit=True) as connection:
        dropped(connection)
    return database


@pytest.fixture
def make_decoding(clean_database: str) -> Iterator[Any]:
    """Builds a Decoding; closed afterwards."""
    made: list[Decoding] = []

    def build(**settings: Any) -> Decoding:
        made.append(Decoding(clean_database, **settings))
        return made[-1]

    yield build
    for decoding in made:
        decoding.close()


@pytest.fixture
def config(servers: Endpoints) -> Config:
    """A prefix of its own for each test, so that they share one Kafka; there is no source."""
    kafka = {"bootstrap": servers.kafka_bootstrap, "prefix": f"t{secrets.token_hex(6)}", "partitions": 2}
    return parse({"postgres": {"dsn": "postgresql://unused"}, "kafka": kafka})


@pytest.fixture
async def topics(config: Config) -> AsyncIterator[TopicWriter]:
    """A writer with the topic of one table."""
    async with TopicWriter(config) as writer:
        await writer.create("public.memories")
        yield writer


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of this module's own: its tests flush, swap and starve it."""
    own = Servers(tmp_path_factory.mktemp("redis"), only=("redis",), report=print)
    try:
        yield own.start().redis_url
    finally:
        own.erase()


@pytest.fixture
async def redis(url: str) -> AsyncIterator[Redis]:
    """A bare client on an empty server."""
    client = Redis.from_url(url, decode_responses=True)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def store(url: str, redis: Redis) -> AsyncIterator[RedisStore]:
    """Opened, empty."""
    opened = RedisStore(redis_records.config(url))
    assert await opened.open() == {}
    yield opened
    await opened.close()
