"""Rows above the limit: refused with words by a reader that stays up, or set aside by choice until they fit again."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc.commands.exposition import read_samples, total
from cdc.config import Config, parse
from cdc.embedded import Endpoints
from cdc.errors import RecordError
from cdc.reader import Reader
from tests.command_line import CommandLine, free_ports
from tests.comparison import redis_rows, rows_of, table_dump
from tests.pipeline import Running, config_of, pipeline, settings, source
from tests.waiting import LIMIT_SECONDS, until

SMALL_LIMIT = 1 << 16  # the smallest max_record_bytes
BIG = 3 * SMALL_LIMIT  # a row's text above it


def content(connection: psycopg.Connection, number: int, size: int) -> None:
    """Inserts the row or gives it another text; the vector says which."""
    connection.execute(
        "INSERT INTO memories (id, content, embedding) VALUES (%(id)s, repeat('x', %(size)s), %(vector)s)"
        " ON CONFLICT (id) DO UPDATE SET content = excluded.content, embedding = excluded.embedding",
        {"id": number, "size": size, "vector": [float(size), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]},
    )


@pytest.fixture
def small(servers: Endpoints, table_dsn: str, tmp_path: Path) -> Config:
    """A limit that a row passes quickly."""
    return config_of(servers, table_dsn, tmp_path, kafka={"max_record_bytes": SMALL_LIMIT, "oversized": "dead-letter"})


async def test_a_row_that_is_set_aside_comes_back(small: Config) -> None:
    """Inserted too large, grown too large, left too large by an update of another column, shrunk, deleted."""
    with source(small) as connection:
        content(connection, 1, BIG)  # met by the snapshot
        content(connection, 2, 10)
        content(connection, 3, 10)
        async with pipeline(small) as running:
            await running.caught_up()
            assert await lacking(running) == {"1"}
            content(connection, 2, BIG)
            content(connection, 4, BIG)
            await running.caught_up()
            assert await lacking(running) == {"1", "2", "4"}
            connection.execute("UPDATE memories SET who = 'else' WHERE id IN (1, 3)")  # 1: its text is filled in
            await running.restart()
            await running.caught_up()
            assert await lacking(running) == {"1", "2", "4"}
            assert await letters(small) == {"1", "2", "4"}
            content(connection, 1, 20)
            content(connection, 2, 20)
            connection.execute("DELETE FROM memories WHERE id = 4")
            await running.caught_up()
            assert await lacking(running) == set()
            assert await letters(small) == set()
            records = await table_dump(small)
            assert max(len(record.value or b"") for record in records) < SMALL_LIMIT


async def lacking(running: Running) -> set[str | None]:
    """Rows that PostgreSQL has and neither store, not even as it was before; all others are equal."""
    expected = {row["id"]: row for row in await asyncio.to_thread(rows_of, running.config)}
    held = {row["id"]: row for row in await asyncio.to_thread(redis_rows, running.config)}
    index = {str(json.loads(key)["id"]) async for key, _position in running.index.scan("public", "memories")}
    assert {key: row for key, row in expected.items() if key in held} == held
    assert index == held.keys()
    return expected.keys() - held.keys()


async def letters(config: Config) -> set[str]:
    from cdc.commands.letters import filed

    found = [each.letter for each in await filed(config, "reader") if each.open]
    assert all(letter.position and letter.reason == "too_large" for letter in found)
    return {str(json.loads(letter.key or b"")["id"]) for letter in found}


async def test_a_row_above_the_limit_blocks_with_words(servers: Endpoints, table_dsn: str, tmp_path: Path) -> None:
    """The process stays up, says so in metrics and status, watches its slot, and goes on once it may."""
    data = settings(servers, table_dsn, tmp_path, kafka={"max_record_bytes": SMALL_LIMIT}, **free_ports())
    command = CommandLine(tmp_path, data)
    with source(parse(data)) as connection:
        connection.execute("INSERT INTO memories (id, content) VALUES (1, repeat('x', %s))", [BIG])
    with command.running("reader") as process:
        blocked = {"name": "cdc_reader_blocked", "reason": "too_large"}
        await until(lambda: _shows(data, 1, **blocked), "the metric")
        await until(lambda: _shows(data, 0, name="cdc_slot_active"), "the slot nobody reads")
        status = await asyncio.to_thread(command.json, "status", code=1)
        assert status["processes"]["reader"]["up"] is False
        assert "too_large" in status["processes"]["reader"]["reason"]
        assert process.poll() is None
        process.terminate()
        assert await asyncio.to_thread(process.wait, LIMIT_SECONDS) == 2
    said = (tmp_path / "reader.log").read_text().splitlines()[-1]
    assert said.startswith("cdc: a row of public.memories at 1:")
    assert "reader-blocked" in said
    assert "xxx" not in said


async def _shows(data: Mapping[str, Any], value: float, *, name: str, **labels: str) -> bool:
    try:
        samples = await read_samples(f"127.0.0.1:{data['metrics']['reader_port']}", 3)
    except Exception as error:  # noqa: BLE001 - it has not started yet
        print("waiting", type(error).__name__)
        return False
    return total(samples, name, **labels) == value


@pytest.mark.parametrize("oversized", ["stop", "dead-letter"])
async def test_kafka_refuses_what_we_allow(servers: Endpoints, table_dsn: str, tmp_path: Path, oversized: str) -> None:
    """Somebody lowered the topic's limit while the reader ran: told, and nothing is skipped."""
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

    config = config_of(servers, table_dsn, tmp_path, kafka={"oversized": oversized})
    reader = Reader(config, gap_seconds=0)
    running = asyncio.ensure_future(reader.run())
    await until(lambda: reader.progress is not None and reader.progress.position.commit_lsn > 0, "progress")
    admin = AIOKafkaAdminClient(**config.kafka.client_options())
    await admin.start()
    topic = config.kafka.table_topic("public", "memories")
    await admin.alter_configs(
        [ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": str(SMALL_LIMIT)})]
    )
    await admin.close()
    with source(config) as connection:
        await asyncio.to_thread(_bulky, connection)
        with pytest.raises(RecordError, match=r"max\.message\.bytes"):
            await asyncio.wait_for(running, LIMIT_SECONDS)
    assert await table_dump(config) == []


def _bulky(connection: psycopg.Connection) -> None:
    """Not compressible, so that it is too large for Kafka also compressed."""
    connection.execute("INSERT INTO memories (id, content) VALUES (1, %s)", [os.urandom(BIG).hex()])
