"""`cdc.letters` says of each dead letter what its topic says: each entry once, whoever mirrors, whenever it starts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from aiokafka import AIOKafkaProducer

from cdc.commands.gateway_letters import Mirror
from cdc.config import Config
from cdc.embedded import Endpoints
from cdc.migrations import migrate
from consumers.dead_letters import DeadLetters
from consumers.letters import DeadLetter, headers_of
from consumers.store import Record, Rejected
from tests.pipeline import config_of
from tests.redis_records import at

LETTERS = 'SELECT key, reason, outcome, closed_at >= refused_at, table_name FROM cdc.letters ORDER BY "offset"'
VERSIONS = "SELECT array_agg(xmin::text ORDER BY id) FROM cdc.letters"


@pytest.fixture
def config(servers: Endpoints, dsn: str, tmp_path: Path) -> Config:
    migrate(dsn)
    return config_of(servers, dsn, tmp_path)


@pytest.fixture
async def letters(config: Config) -> AsyncIterator[DeadLetters]:
    writing = DeadLetters(config, "redis")
    yield writing
    await writing.close()


def refused(config: Config, key: int, offset: int, reason: str = "dimension") -> tuple[str, list[Rejected]]:
    record = Record(b'{"id":%d}' % key, b"{}", at(offset), b"{}", 0, offset)
    return config.kafka.table_topic("public", "memories"), [Rejected(record, reason, "3 of 8")]


def select(config: Config, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(config.postgres.dsn, autocommit=True) as connection:
        cursor = connection.execute(query.encode())
        return cursor.fetchall() if cursor.description else []


async def test_each_letter_as_its_topic_says(config: Config, letters: DeadLetters) -> None:
    mirror = Mirror(config)
    await mirror.round()  # there is no topic yet
    assert select(config, LETTERS) == []
    await letters.add(*refused(config, 1, 5))
    await letters.add(*refused(config, 2, 6))
    await mirror.round()
    table = "public.memories"
    first, second = ({"id": 1}, "dimension"), ({"id": 2}, "dimension")
    assert select(config, LETTERS) == [(*first, None, None, table), (*second, None, None, table)]
    await letters.add(*refused(config, 1, 7, "type"))  # a newer record of the key
    await mirror.round()
    newer = {"id": 1}, "type", None, None, table
    assert select(config, LETTERS) == [
        (*first, "superseded", True, table), (*second, None, None, table), newer,
    ]  # fmt: skip
    before = select(config, VERSIONS)
    await mirror.round()
    await Mirror(config).round()  # another gateway, or the same after a restart
    assert select(config, VERSIONS) == before  # nothing was written again
    found = DeadLetter(
        b'{"id":2}', None, "dimension", "3 of 8", "redis", config.kafka.table_topic("public", "memories"), 0, 6,
        at(6), b"{}", 0,
    )  # fmt: skip
    await letters.close_letters({found: "redriven"})
    await Mirror(config).round()
    assert select(config, LETTERS)[1] == (*second, "redriven", True, table)
    select(config, "DELETE FROM cdc.letters WHERE outcome IS NOT NULL")
    await Mirror(config).round()
    assert select(config, LETTERS) == [newer]  # what was pruned stays away


async def test_a_failure_leaves_nothing_out(config: Config, letters: DeadLetters) -> None:
    mirror = Mirror(config)
    await letters.add(*refused(config, 1, 5))
    select(config, "ALTER TABLE cdc.letters RENAME TO away")
    with pytest.raises(Exception, match="control schema"):
        await mirror.round()
    select(config, "ALTER TABLE cdc.away RENAME TO letters")
    await mirror.round()
    assert len(select(config, LETTERS)) == 1


async def test_what_other_programs_wrote_stops_nothing(config: Config, letters: DeadLetters) -> None:
    topic = config.kafka.dead_letter_topic("redis")
    await letters.add(*refused(config, 1, 5))
    producer = AIOKafkaProducer(**config.kafka.client_options())
    await producer.start()
    try:
        strange = DeadLetter(
            b'{"id":"\\u0000"}', None, "foreign", "a\0b", "redis", "else.where", 1 << 40, 7, b"", b"", 1
        )
        for letter in (strange, strange._replace(partition=1), strange._replace(partition=2, time_ms=10**18)):
            await producer.send_and_wait(topic, None, key=letter.key, headers=headers_of(letter))
        await producer.send_and_wait(topic, b"anything", key=b"\xff")
    finally:
        await producer.stop()
    await Mirror(config).round()
    found = select(config, "SELECT partition, key, table_name, message FROM cdc.letters ORDER BY partition")
    assert found == [(0, {"id": 1}, "public.memories", "3 of 8"), (1, None, None, "ab")]
