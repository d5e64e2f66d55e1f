"""wal2json and pgoutput through a whole reader each: one workload gives equal topics."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc.config import Config
from cdc.embedded import Endpoints
from tests.comparison import Record, assert_in_order, table_dump
from tests.pipeline import MEMORIES, ReaderTask, config_of, reading, source, written
from tests.type_samples import SETUP, create, inserts

TABLES = ("every", "memories", "whole", "parted", "secret", "pairs", "shifting")
LONG = "repeat('long ', 2000)"  # kept apart by TOAST: its storage is external

SCHEMA = f"""
{MEMORIES};
CREATE TABLE whole (id int PRIMARY KEY, a text, big text, f float8);
ALTER TABLE whole REPLICA IDENTITY FULL;
ALTER TABLE whole ALTER big SET STORAGE EXTERNAL;
CREATE TABLE parted (id int, region text, v numeric, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
CREATE TABLE parted_a PARTITION OF parted FOR VALUES IN ('a');
CREATE TABLE parted_b PARTITION OF parted FOR VALUES IN ('b');
CREATE TABLE secret (id int PRIMARY KEY, name text, mail text, note text, seen text);
CREATE TABLE pairs (a text, b int, v text, PRIMARY KEY (b, a));
CREATE TABLE shifting (id int PRIMARY KEY, v text);
"""

# One transaction each, but where BEGIN says otherwise. A line "settled" waits for both readers: behind it
# may be changed what one has to select, else it could see the newer value already, which is right but not equal.
WORKLOAD = f"""
INSERT INTO memories (id, content, score, amount) SELECT n, {LONG}, n / 3.0, n FROM generate_series(1, 20) n;
UPDATE memories SET who = 'touched' WHERE id <= 10;
INSERT INTO memories (id, score, amount) VALUES (50, 'NaN', 'NaN'), (51, 'Infinity', '-Infinity'), (52, NULL, NULL);
settled;
UPDATE memories SET id = id + 100 WHERE id IN (3, 4);
UPDATE memories SET embedding = array[id, 0.5, 'NaN'] WHERE id = 7;
INSERT INTO whole SELECT n, 'a', {LONG}, 'NaN' FROM generate_series(1, 9) n;
settled;
UPDATE whole SET a = 'b', f = 1 WHERE id < 5;
UPDATE whole SET big = 'short' WHERE id = 1;
UPDATE whole SET id = id + 10 WHERE id < 3;
DELETE FROM whole WHERE id IN (3, 4, 11);
BEGIN;
INSERT INTO pairs VALUES ('x', 1, 'kept'), ('y "q" ', 2, 'kept');
SAVEPOINT s;
INSERT INTO pairs VALUES ('z', 3, 'undone');
UPDATE pairs SET v = 'undone';
ROLLBACK TO SAVEPOINT s;
UPDATE pairs SET b = b + 10 WHERE a = 'x';
SAVEPOINT t;
INSERT INTO whole VALUES (100, 'in a savepoint', 'x', 1);
RELEASE SAVEPOINT t;
COMMIT;
BEGIN;
INSERT INTO pairs VALUES ('never', 9, '');
ROLLBACK;
INSERT INTO parted SELECT n, CASE WHEN n % 2 = 0 THEN 'a' ELSE 'b' END, n FROM generate_series(1, 8) n;
UPDATE parted SET region = 'b' WHERE id = 2;
UPDATE parted SET v = 'NaN' WHERE id = 4;
DELETE FROM parted WHERE id = 5;
INSERT INTO secret VALUES (1, 'Ada', 'ada@example.org', 'dropped', 'seen'), (2, NULL, NULL, NULL, NULL);
UPDATE secret SET mail = 'new@example.org', note = 'also dropped' WHERE id = 1;
settled;
TRUNCATE pairs, parted;
INSERT INTO pairs VALUES ('after', 1, 'truncate');
BEGIN;
TRUNCATE pairs;
INSERT INTO pairs VALUES ('in one', 1, 'transaction');
COMMIT;
settled;
UPDATE every SET id = id + 100;
settled;
DELETE FROM every WHERE id > 103
"""

# Each step is read by both before the next: what rows were written before a change of their table is not in the log.
CHANGES = (
    "INSERT INTO shifting VALUES (1, 'before')",
    "ALTER TABLE shifting ADD COLUMN w int DEFAULT 5; INSERT INTO shifting VALUES (2, 'added', 7)",
    "ALTER TABLE shifting RENAME COLUMN v TO renamed; UPDATE shifting SET w = 8 WHERE id = 1",
    "ALTER TABLE shifting DROP COLUMN w; INSERT INTO shifting VALUES (3, 'dropped')",
    "ALTER TABLE shifting ALTER id TYPE bigint; INSERT INTO shifting VALUES (5000000000, 'wider')",
    "BEGIN; INSERT INTO shifting VALUES (6, 'x'); ALTER TABLE shifting ADD u text; INSERT INTO shifting VALUES (7, 'x',"
    " 'y'); COMMIT",
)


def configs(servers: Endpoints, dsn: str, folder: Path) -> dict[str, Config]:
    """One a plugin, alike but for slot and topics."""
    tables = {
        "public.memories": {"vector": "embedding"},
        "public.secret": {"mask": {"name": "hash", "mail": "redact", "note": "drop"}, "exclude": ["seen"]},
    }
    return {
        plugin: config_of(
            servers, dsn, folder, source_name="one", mask_secret="pepper", tables=tables,
            postgres={"plugin": plugin, "tables": [f"public.{name}" for name in TABLES], "snapshot": "never"},
        )
        for plugin in ("wal2json", "pgoutput")
    }  # fmt: skip


def run(connection: psycopg.Connection, statements: str) -> None:
    """One statement after the other."""
    for statement in statements.split(";\n"):
        connection.execute(statement.encode())


async def test_one_workload_gives_equal_topics(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    if servers.plugin != "wal2json":
        pytest.skip("this PostgreSQL has no wal2json")
    both = configs(servers, dsn, tmp_path)
    with source(both["wal2json"]) as connection:
        run(connection, SETUP.strip().removesuffix(";"))
        connection.execute(create("every").encode())
        connection.execute(SCHEMA.encode())
        async with reading(both["wal2json"]) as left, reading(both["pgoutput"]) as right:
            readers = list(zip(both.values(), (left, right), strict=True))
            await settled(readers)
            for statement, values in inserts("every"):
                connection.execute(statement, values)
            for part in WORKLOAD.strip().split(";\nsettled;\n"):
                run(connection, part)
                await settled(readers)
            for step in CHANGES:
                run(connection, step.replace("; ", ";\n"))
                await settled(readers)
    for table in TABLES:
        ours, theirs = [comparable(await table_dump(config, table)) for config in both.values()]
        assert len(ours) == len(theirs) > 0, table
        for mine, other in zip(ours, theirs, strict=True):
            assert mine == other, table


async def settled(readers: list[tuple[Config, ReaderTask]]) -> None:
    """Both have written all there is."""
    await asyncio.gather(*(written(config, reader) for config, reader in readers))


def comparable(records: list[Record]) -> list[dict[str, Any]]:
    """All of a record but its offset, and what legitimately differs: the columns one reader had to select."""
    assert_in_order(records)
    return [_plain(record) for record in records]


def _plain(record: Record) -> dict[str, Any]:
    event = record.event if record.value is not None else None
    if event is not None:
        event["source"].pop("filled")
    return {"partition": record.partition, "key": record.key, "headers": record.headers, "event": event}
