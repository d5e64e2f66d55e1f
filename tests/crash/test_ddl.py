"""Tables altered while rows are written and wait, both plugins: all stores are right in the end, or the reader stops
and says what to do, and that helps."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psycopg
import pytest

from cdc.config import Config
from cdc.embedded import Endpoints
from cdc.errors import CdcError
from cdc.reader import Reader
from cdc.resync import resync
from cdc.source import watch
from consumers.rebuild import rebuild
from tests.comparison import Texts, by_id, compacted, index_rows, redis_rows, rows_of, table_dump, topic_rows
from tests.pipeline import COLUMNS, MEMORIES, ReaderTask, Running, config_of, pipeline, source
from tests.waiting import LIMIT_SECONDS, until

Columns = Mapping[str, str]
PUT = """
INSERT INTO memories (id, content, embedding) SELECT n, repeat('c', 3000), array[n,0,0,0,0,0,0,1]
FROM generate_series({}, {}) n
"""
# each with the columns there are afterwards
CHANGES = [
    ("ALTER TABLE memories ADD note text", {"note": "text"}),
    ("ALTER TABLE memories ADD mood text NOT NULL DEFAULT 'calm'", {"mood": "text"}),
    ("ALTER TABLE memories DROP score", {"score": None}),
    ("ALTER TABLE memories RENAME who TO whom", {"who": None, "whom": "text"}),
    ("ALTER TABLE memories ALTER amount TYPE text USING 'n' || amount::text", {"amount": "text"}),
    ("ALTER TABLE memories REPLICA IDENTITY FULL", {}),
    (
        "ALTER TABLE memories RENAME TO others; CREATE TABLE memories (LIKE others INCLUDING ALL);"
        "INSERT INTO memories SELECT * FROM others WHERE id % 3 = 0",
        {},
    ),
    (
        "DROP TABLE memories;"
        "CREATE TABLE memories (content text, embedding real[], id integer PRIMARY KEY, extra integer)",
        {"who": None, "whom": None, "amount": None, "tags": None, "mood": None, "note": None, "extra": "integer"},
    ),
]  # fmt: skip


@pytest.fixture(autouse=True)
def quick_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SLOT_SECONDS", 0.3)


class Altering(NamedTuple):
    """A pipeline, and the session that alters its table."""

    config: Config
    running: Running
    connection: psycopg.Connection


def begun(servers: Endpoints, dsn: str, folder: Path, plugin: str) -> Config:
    if plugin != servers.plugin == "pgoutput":
        pytest.skip("this PostgreSQL has no wal2json")
    config = config_of(servers, dsn, folder, postgres={"plugin": plugin})
    with source(config) as connection:
        connection.execute(MEMORIES)
        connection.execute(PUT.format(1, 40))
    return config


@asynccontextmanager
async def altering(servers: Endpoints, dsn: str, folder: Path, plugin: str) -> AsyncIterator[Altering]:
    """All of it has caught up with the table's first rows."""
    config = begun(servers, dsn, folder, plugin)
    async with pipeline(config) as running:
        await running.caught_up()
        with source(config) as connection:
            yield Altering(config, running, connection)


def touch(connection: psycopg.Connection[Any], round: int) -> None:
    """A few changes of every kind, whatever the columns are."""
    first = 100 * round
    connection.execute(PUT.format(first, first + 5).encode())
    connection.execute("UPDATE memories SET content = %s WHERE id %% 4 = 0", [f"round {round}"])
    connection.execute("UPDATE memories SET embedding = array[0,1,0,0,0,0,0,%s] WHERE id %% 5 = 1", [round + 1])
    connection.execute("DELETE FROM memories WHERE id = %s OR id = %s", [round + 1, first + 1])


def in_topic(records: Any, columns: Columns) -> dict[str | None, Texts]:
    """As `topic_rows`, with NULL for columns that a row has no value of."""
    kept = []
    for record in compacted(records).values():
        event = msgspec.json.decode(record.value or b"", type=dict[str, msgspec.Raw])
        after = {name: msgspec.Raw(b"null") for name in columns}
        after |= msgspec.json.decode(event["after"], type=dict[str, msgspec.Raw])
        assert after.keys() == columns.keys(), "a column remains that is gone"
        kept.append(record._replace(value=msgspec.json.encode({"op": "u", "after": after})))
    return by_id(topic_rows(kept, columns))


async def differences(running: Running, columns: Columns) -> list[str]:
    """Where something is not as PostgreSQL has it."""
    config = running.config
    expected = by_id(await asyncio.to_thread(rows_of, config, "memories", columns))
    try:
        topic = in_topic(await table_dump(config), columns)
    except AssertionError as error:
        return [str(error)]
    held = await index_rows(running.index)
    vectors = {key: row["embedding"] for key, row in expected.items()}
    found = {"topic": topic, "Redis": by_id(redis_rows(config, columns)), "index": held}
    return [name for name, rows in found.items() if rows != (vectors if name == "index" else expected)]


async def settled(running: Running, columns: Columns) -> None:
    """Until everything is equal."""
    await nothing_found(running, lambda: differences(running, columns))


async def nothing_found(running: Running, look: Callable[[], Awaitable[Collection[str]]]) -> None:
    """Until a look at stores that have caught up finds nothing; what it finds for ever is told."""
    found: Collection[str] = ()

    async def nothing() -> bool:
        nonlocal found
        await running.caught_up()
        found = await look()
        return not found

    try:
        await until(nothing, "equality")
    except BaseException:
        print(f"different: {found}")
        raise


@pytest.mark.parametrize("plugin", ["wal2json", "pgoutput"])
async def test_tables_altered_while_rows_wait_and_come(
    servers: Endpoints, dsn: str, tmp_path: Path, plugin: str
) -> None:
    """Every second change meets a running reader, the others one that has to catch up."""
    columns: dict[str, str] = dict(COLUMNS)
    async with altering(servers, dsn, tmp_path, plugin) as (config, running, connection):
        for round, (statement, after) in enumerate(CHANGES, 1):
            if round % 2:
                await running.source.stop()
            await asyncio.to_thread(touch, connection, round)
            connection.execute(statement.encode())
            await asyncio.to_thread(touch, connection, round + 50)
            columns = {name: kind for name, kind in {**columns, **after}.items() if kind is not None}
            if round % 2:
                running.source = ReaderTask(config)
            print(statement)
            await settled(running, columns)


REKEY = """
ALTER TABLE memories ADD number bigint;
UPDATE memories SET number = id + 1000;
ALTER TABLE memories ALTER number SET DEFAULT nextval('numbers'), ALTER number SET NOT NULL;
ALTER TABLE memories DROP CONSTRAINT memories_pkey;
ALTER TABLE memories ADD PRIMARY KEY (number)
"""


def opened(config: Config) -> list[str]:
    """Keys of open dead letters, of both stores."""
    from cdc.commands.letters import filed

    return [str(each.letter.key) for store in ("redis", "faiss") for each in asyncio.run(filed(config, store))]


@pytest.mark.parametrize("plugin", ["wal2json", "pgoutput"])
async def test_another_primary_key(servers: Endpoints, dsn: str, tmp_path: Path, plugin: str) -> None:
    """While the pipeline runs, then while the reader is away: both stores follow, and a rebuild is equal too."""
    async with altering(servers, dsn, tmp_path, plugin) as (config, running, connection):
        connection.execute("CREATE SEQUENCE numbers START 5000")
        await asyncio.to_thread(touch, connection, 1)
        await running.caught_up()
        connection.execute(REKEY.encode())
        await asyncio.to_thread(touch, connection, 2)
        await same_keys(running, "number")
        await asyncio.to_thread(touch, connection, 3)
        await running.caught_up()
        await running.source.stop()
        connection.execute("ALTER TABLE memories DROP CONSTRAINT memories_pkey, ADD PRIMARY KEY (id)")
        await asyncio.to_thread(touch, connection, 4)
        running.source = ReaderTask(config)
        await same_keys(running, "id")
        await asyncio.to_thread(touch, connection, 5)
        await same_keys(running, "id")
        for store in (running.memory, running.index):
            elsewhere: Any = type(store)(config)
            report = await rebuild(config, elsewhere, live=store)
            await elsewhere.close()
            assert report.swapped
            assert report.rejected == {}
            assert report.live_differences == []
            await same_keys(running, "id")
    assert await asyncio.to_thread(opened, config) == []


async def same_keys(running: Running, column: str) -> None:
    """Until both stores hold the table's rows under the key they have now, and nothing else."""
    await nothing_found(running, lambda: other_keys(running, column))


async def other_keys(running: Running, column: str) -> dict[str, list[str]]:
    """Keys that are too many or too few, by store."""
    query = f"SELECT {column} FROM memories"
    with source(running.config) as connection:
        expected = {
            json.dumps({column: value}, separators=(",", ":")) for (value,) in connection.execute(query.encode())
        }
    found = {}
    for name, store in (("Redis", running.memory), ("index", running.index)):
        held = {key.decode() async for key, _ in store.scan("public", "memories")}
        if held != expected:
            found[name] = sorted(held ^ expected)
    return found


async def refused(config: Config) -> CdcError:
    """What a reader says that cannot go on."""
    with pytest.raises(CdcError) as caught:
        await asyncio.wait_for(Reader(config, gap_seconds=0).run(), LIMIT_SECONDS)
    print(caught.value)
    return caught.value


async def test_taken_out_of_the_publication(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    """What was written meanwhile passes unseen; the table is put back and read again."""
    async with altering(servers, dsn, tmp_path, "pgoutput") as (config, running, connection):
        name = config.postgres.publication
        connection.execute(f"ALTER PUBLICATION {name} DROP TABLE memories".encode())
        await asyncio.to_thread(touch, connection, 1)
        await settled(running, COLUMNS)
        await running.source.stop()
        connection.execute(f"ALTER PUBLICATION {name} DROP TABLE memories".encode())
        await asyncio.to_thread(touch, connection, 2)
        connection.execute(f"ALTER PUBLICATION {name} ADD TABLE memories".encode())
        running.source = ReaderTask(config)
        await settled(running, COLUMNS)


async def test_a_publication_that_leaves_out_changes(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    async with altering(servers, dsn, tmp_path, "pgoutput") as (config, running, connection):
        name = config.postgres.publication
        connection.execute(f"ALTER PUBLICATION {name} SET (publish = 'insert')".encode())
        await asyncio.to_thread(touch, connection, 1)
        with pytest.raises(CdcError, match="leaves out a kind of change") as caught:
            await asyncio.wait_for(running.source.task, LIMIT_SECONDS)
        remedy = caught.value.hint.split(", then")[0]
        connection.execute(remedy.encode())
        running.source = ReaderTask(config)
        await settled(running, COLUMNS)


async def test_a_publication_that_is_gone(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    """Rows written while there was none cannot be decoded; a resync reads the tables instead."""
    async with altering(servers, dsn, tmp_path, "pgoutput") as (config, running, connection):
        await running.source.stop()
        connection.execute(f"DROP PUBLICATION {config.postgres.publication}".encode())
        await asyncio.to_thread(touch, connection, 1)
        error = await refused(config)
        assert "cdc resync" in error.hint
        await resync(config)
        running.source = ReaderTask(config)
        await settled(running, COLUMNS)


@pytest.mark.parametrize("plugin", ["wal2json", "pgoutput"])
async def test_a_replica_identity_that_tells_nothing(servers: Endpoints, dsn: str, tmp_path: Path, plugin: str) -> None:
    """The reader stops with the statement that mends it, and then reads the table again."""
    async with altering(servers, dsn, tmp_path, plugin) as (config, running, connection):
        connection.execute("ALTER TABLE memories REPLICA IDENTITY NOTHING")
        connection.execute(PUT.format(200, 205))
        if plugin == "wal2json":  # pgoutput's publication has PostgreSQL refuse it
            connection.execute("DELETE FROM memories WHERE id < 5")
        with pytest.raises(CdcError, match="would be lost") as caught:
            await asyncio.wait_for(running.source.task, LIMIT_SECONDS)
        connection.execute(caught.value.hint.split(";")[0].encode())
        running.source = ReaderTask(config)
        await settled(running, COLUMNS)
