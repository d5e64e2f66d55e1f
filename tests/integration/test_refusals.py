"""What a reader refuses, what it waits for, and how a resync mends what was lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client import REGISTRY
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cdc.config import Config, parse
from cdc.embedded import Endpoints, Servers
from cdc.errors import GapError, LoginError, PreconditionError
from cdc.reader import Reader
from cdc.resync import resync
from tests.comparison import assert_equal_everywhere, assert_in_order, table_dump
from tests.integration.test_reader import snapshots_done
from tests.pipeline import MEMORIES, ReaderTask, config_of, pipeline, reading, settings, source, written
from tests.waiting import LIMIT_SECONDS, until

ROWS = """
INSERT INTO memories (id, content, embedding) SELECT n, 't', array[n,0,0,0,0,0,0,1] FROM generate_series({}, {}) n
"""


def dropped(connection: psycopg.Connection, config: Config) -> None:
    connection.execute("SELECT pg_drop_replication_slot(%s)", [config.postgres.slot])


def advanced(connection: psycopg.Connection, config: Config) -> None:
    connection.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", [config.postgres.slot])


def recreated(connection: psycopg.Connection, config: Config) -> None:
    dropped(connection, config)
    connection.execute(
        "SELECT pg_create_logical_replication_slot(%s, %s)", [config.postgres.slot, config.postgres.plugin]
    )


@pytest.mark.parametrize(
    ("harm", "snapshots"), [(dropped, "initial"), (advanced, "initial"), (recreated, "initial"), (dropped, "never")]
)
async def test_a_gap_is_refused_and_a_resync_mends_it(
    servers: Endpoints, dsn: str, tmp_path: Path, harm: Callable[[Any, Config], None], snapshots: str
) -> None:
    """Rows deleted unseen go, rows inserted unseen come, and nothing goes on before."""
    config = config_of(servers, dsn, tmp_path, postgres={"snapshot": snapshots})
    with source(config) as connection:
        connection.execute(MEMORIES)
        async with pipeline(config) as running:
            await written(config, running.source)
            connection.execute(ROWS.format(1, 40))
            if snapshots == "initial":
                await running.caught_up()
            await written(config, running.source)
            await running.source.stop()
            connection.execute("DELETE FROM memories WHERE id <= 10")
            connection.execute("UPDATE memories SET who = 'unseen' WHERE id = 20")
            connection.execute(ROWS.format(41, 50))
            harm(connection, config)
            with pytest.raises(GapError, match="lost to the stream") as caught:
                await asyncio.wait_for(Reader(config, gap_seconds=0).run(), LIMIT_SECONDS)
            assert "cdc resync" in caught.value.hint
            assert (await resync(config)).epoch == 2
            running.source = ReaderTask(config)
            await running.caught_up()
            assert_in_order(await assert_equal_everywhere(running))
            connection.execute("DELETE FROM memories WHERE id = 30")
            await running.caught_up()
            await assert_equal_everywhere(running)


async def test_a_resync_waits_for_the_reader_to_stop(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    config = config_of(servers, dsn, tmp_path)
    with source(config) as connection:
        connection.execute(MEMORIES)
    async with reading(config) as reader:
        await written(config, reader)
        with pytest.raises(PreconditionError, match="in use by a reader"):
            await resync(config)


async def test_a_table_without_identity_is_refused_with_the_remedy(
    servers: Endpoints, dsn: str, tmp_path: Path
) -> None:
    config = config_of(servers, dsn, tmp_path)
    with source(config) as connection:
        connection.execute("CREATE TABLE memories (id int, content text)")
        with pytest.raises(PreconditionError, match="replica identity") as caught:
            await Reader(config).run()
        assert 'ALTER TABLE "public"."memories" ADD PRIMARY KEY' in caught.value.hint
        connection.execute("ALTER TABLE memories ADD PRIMARY KEY (id)")
        connection.execute("ALTER TABLE memories REPLICA IDENTITY NOTHING")
        with pytest.raises(PreconditionError, match="replica identity") as caught:
            await Reader(config).run()
        statement = caught.value.hint.split(";")[0]
        connection.execute(statement.encode())  # exactly what the hint says
        async with reading(config) as reader:
            await written(config, reader)
            connection.execute("INSERT INTO memories VALUES (1, 'x')")
            connection.execute("UPDATE memories SET content = 'y'")
            await written(config, reader)
        assert [record.event["op"] for record in await table_dump(config)] == ["c", "u"]


async def test_a_key_that_does_not_travel_is_refused(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    tables = {"public.memories": {"exclude": ["id"], "vector": "embedding"}}
    config = config_of(servers, dsn, tmp_path, tables=tables)
    with source(config) as connection:
        connection.execute(MEMORIES)
    with pytest.raises(PreconditionError, match="key column id"):
        await Reader(config).run()


async def test_a_table_that_comes_later_is_waited_for(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    config = config_of(servers, dsn, tmp_path)
    labels = {"source": config.source_name, "reason": "AbsentError"}
    async with reading(config) as reader:
        await until(lambda: (REGISTRY.get_sample_value("cdc_reader_retries_total", labels) or 0) >= 2, "two tries")
        with source(config) as connection:
            connection.execute(MEMORIES)
            connection.execute("INSERT INTO memories VALUES (1, 'x')")
        await until(lambda: reader.reader.progress is not None, "a session")
        await written(config, reader, snapshots_done)
    assert [record.event["op"] for record in await table_dump(config)] == ["r"]


async def test_a_wrong_password_ends_the_reader_with_one_sentence(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    wrong = make_conninfo(**{**conninfo_to_dict(dsn), "password": "wrong"})
    config = parse(settings(servers, wrong, tmp_path))
    with pytest.raises(LoginError, match="password authentication failed") as caught:
        await Reader(config).run()
    assert "PASSWORD_FILE" in caught.value.hint
    assert "wrong" not in str(caught.value).replace("password", "")


async def assert_waits(config: Config) -> None:
    """The reader tries again and again, and ends when it is told to."""
    labels = {"source": config.source_name, "reason": "ConnectError"}
    async with reading(config):
        await until(lambda: (REGISTRY.get_sample_value("cdc_reader_retries_total", labels) or 0) >= 2, "two tries")


async def test_kafka_away_is_waited_for(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    config = config_of(servers, dsn, tmp_path, kafka={"bootstrap": "127.0.0.1:1", "prefix": "none"})
    with source(config) as connection:
        connection.execute(MEMORIES)
    await assert_waits(config)


async def test_servers_that_come_back(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """PostgreSQL and Kafka restarted under a running pipeline: it goes on, and nothing is missing or there twice."""
    own = Servers(tmp_path_factory.mktemp("restarted"))
    try:
        endpoints = own.start()
        config = config_of(endpoints, endpoints.postgres_dsn, tmp_path)
        with source(config) as connection:
            connection.execute("DROP TABLE IF EXISTS memories")
            connection.execute(MEMORIES)
            connection.execute(ROWS.format(1, 100))
        async with pipeline(config) as running:
            await running.caught_up()
            await asyncio.to_thread(own["postgres"].stop)
            await asyncio.to_thread(own["postgres"].start)
            with source(config) as connection:
                connection.execute(ROWS.format(101, 150))
                await running.caught_up()
                await asyncio.to_thread(own["kafka"].stop)
                connection.execute("DELETE FROM memories WHERE id <= 50")
                await asyncio.to_thread(own["kafka"].start)
            await running.caught_up()
            assert_in_order(await assert_equal_everywhere(running))
    finally:
        own.erase()


async def test_a_second_reader_stands_by_and_takes_over(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    config = config_of(servers, dsn, tmp_path)
    with source(config) as connection:
        connection.execute(MEMORIES)
        async with reading(config) as first:
            await written(config, first)
            async with reading(config) as second:
                connection.execute(ROWS.format(1, 20))
                await written(config, first)
                assert second.reader.progress is None
                await first.crash()
                connection.execute(ROWS.format(21, 40))
                await until(lambda: second.reader.progress is not None, "the second reader at work")
                await written(config, second)
    records = await table_dump(config)
    assert_in_order(records)
    assert len(records) == 40


async def test_an_idle_database(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    """Heartbeats alone move the slot and the stores' freshness."""
    config = config_of(servers, dsn, tmp_path)
    with source(config) as connection:
        connection.execute(MEMORIES)
        async with pipeline(config) as running:
            await running.caught_up()

            def confirmed() -> int:
                query = "SELECT (confirmed_flush_lsn - '0/0')::int8 FROM pg_replication_slots WHERE slot_name = %s"
                row = connection.execute(query, [config.postgres.slot]).fetchone()
                assert row is not None
                return int(row[0])

            begun = confirmed()
            fresh = {name: consumer.freshness.at for name, consumer in running.consumers.items()}
            await until(lambda: confirmed() > begun, "the slot moving")
            await until(
                lambda: all((c.freshness.at or 0) > (fresh[n] or 0) for n, c in running.consumers.items()),
                "stores getting fresher",
            )
