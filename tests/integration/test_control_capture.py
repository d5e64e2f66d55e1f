"""The control schema never travels: whatever the configuration selects, whatever is published."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdc.config import Config
from cdc.embedded import Endpoints
from cdc.kafka.offsets import open_consumer
from cdc.migrations import migrate
from tests.comparison import dump
from tests.integration.test_reader import snapshots_done
from tests.pipeline import config_of, reading, source, written

ROW = "INSERT INTO memories (user_id, content) VALUES ('a', 'b')"
# A write to each table of the schema; one more table needs one more line.
WRITES = {
    "migrations": "INSERT INTO cdc.migrations VALUES (999, '999_x.sql', repeat('0', 64))",
    "watermarks": "INSERT INTO cdc.watermarks (store, table_name, history, complete) VALUES ('a', 'b.c', '', false)",
    "marks": "SELECT cdc.mark()",
    "tracked_tables": "SELECT cdc.track('memories', 'other')",
    "jobs": "INSERT INTO cdc.jobs (kind) VALUES ('verify')",
    "signals": "INSERT INTO cdc.signals (kind) VALUES ('verify')",
    "verify_runs": "INSERT INTO cdc.verify_runs (store, table_name, started_at, ended_at, rows, missing, extra, stale,"
    " different, unsettled) VALUES ('a', 'b.c', now(), now(), 0, 0, 0, 0, 0, 0)",
    "letters": 'INSERT INTO cdc.letters (id, store, reason, topic, partition, "offset", refused_at)'
    " VALUES ('a', 'b', 'c', 'd', 0, 0, now())",
    "conflicts": "INSERT INTO cdc.conflicts (store, table_name, key, held, incoming, kept, position)"
    " VALUES ('a', 'b.c', '{}', '{}', '{}', 'held', repeat('0', 32))",
    "audit": "INSERT INTO cdc.audit (actor, action, outcome) VALUES ('a', 'b', 'allowed')",
    "row_changes": "SELECT cdc.count_rows('memories')",
    "schedules": "INSERT INTO cdc.schedules (name, kind, period) VALUES ('a', 'verify', '1 day')",
    "verify_subjects": "INSERT INTO cdc.verify_subjects (store, table_name) VALUES ('a', 'b.c')",
    "mirrors": "INSERT INTO cdc.mirrors (store, log, next_offset) VALUES ('a', 'b', 0)",
    "conditions": "INSERT INTO cdc.conditions (id, table_name, condition) VALUES (gen_random_uuid(), 'b.c', 'true')",
}


@pytest.mark.parametrize("plugin", ["wal2json", "pgoutput"])
@pytest.mark.parametrize("tables", [["*.*"], ["public.*", "cdc.*", "cdc.jobs"], ["public.memories"]], ids=str)
async def test_nothing_of_it_reaches_kafka(
    servers: Endpoints, dsn: str, tmp_path: Path, plugin: str, tables: list[str]
) -> None:
    migrate(dsn)
    config = config_of(servers, dsn, tmp_path, postgres={"plugin": plugin, "tables": tables})
    with source(config) as connection:
        connection.execute(f"CREATE PUBLICATION {config.postgres.publication} FOR ALL TABLES".encode())
        connection.execute(ROW)
        async with reading(config) as running:
            await written(config, running, snapshots_done)
            topics, records = await _topics(config), await dump(config, _data(config))
            assert _data(config) in topics
            assert len(records) == 1
            for table, statement in WRITES.items():
                connection.execute(statement.encode())
                assert connection.execute(f"SELECT count(*) > 0 FROM cdc.{table}".encode()).fetchone() == (True,)
            names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'cdc'").fetchall()
            assert {name for (name,) in names} == WRITES.keys()
            connection.execute(
                "UPDATE cdc.jobs SET stage = 'x'; DELETE FROM cdc.letters; TRUNCATE cdc.conflicts, cdc.marks"
            )
            connection.execute(ROW)  # by which the counters are written, too
            await written(config, running)
            assert await _topics(config) == topics
            assert len(await dump(config, _data(config))) == 2
            progress = running.reader.progress
            assert progress is not None
            assert progress.snapshots.keys() == {"public.memories"}


def _data(config: Config) -> str:
    return config.kafka.table_topic("public", "memories")


async def _topics(config: Config) -> set[str]:
    """All of ours."""
    async with open_consumer(config.kafka) as consumer:
        return {topic for topic in await consumer.topics() if topic.startswith(config.kafka.prefix)}
