"""Snapshots among the stream: nothing missing, nothing old over new, resumed where they were killed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from cdc.embedded import Endpoints
from cdc.envelope import MARKER_KEYS, decode_key
from cdc.source import copying, snapshot
from cdc.source.patience import PatientConnection
from cdc.source.window import Chunk
from tests.comparison import assert_equal_everywhere, assert_in_order, by_id, rows_of, table_dump, topic_rows
from tests.pipeline import COLUMNS, MEMORIES, Running, config_of, emit, pipeline, reading, source, written

NAME = "public.memories"


def fill(count: int, content: str = "'t'") -> str:
    return f"INSERT INTO memories (id, content) SELECT n, {content} FROM generate_series(1, {count}) n"


async def test_writers_go_on_while_it_runs(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    config = config_of(servers, dsn, tmp_path)
    with source(config) as connection:
        connection.execute(MEMORIES)
        connection.execute(fill(700))
    async with pipeline(config) as running:
        writing = asyncio.ensure_future(asyncio.to_thread(write, running))
        await writing
        await running.caught_up()
        assert_in_order(await assert_equal_everywhere(running))


async def test_a_change_between_reading_and_placing_is_newer(
    servers: Endpoints, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forced for every chunk: its first row is updated, its last deleted, after it was read and before it is placed."""
    config = config_of(servers, dsn, tmp_path)
    close_window = snapshot.ChunkReader.close_window

    def late(reader: snapshot.ChunkReader, chunk: Chunk) -> None:
        keys = [decode_key(key)["id"] for key, _, _ in chunk.rows]
        if keys:
            first, last = keys[0], keys[-1]
            with source(config) as connection:
                connection.execute("UPDATE memories SET who = 'newer' WHERE id = %s", [first])
                connection.execute("DELETE FROM memories WHERE id = %s", [last])
        close_window(reader, chunk)

    monkeypatch.setattr(snapshot.ChunkReader, "close_window", late)
    with source(config) as connection:
        connection.execute(MEMORIES)
        connection.execute(fill(70))
    async with pipeline(config) as running:
        await running.caught_up()
        assert_in_order(await assert_equal_everywhere(running))


def write(running: Running) -> None:
    """Changes all over the table, in small transactions."""
    with source(running.config) as connection:
        for n in range(1, 350):
            connection.execute("UPDATE memories SET who = %s WHERE id = %s", [f"u{n}", n * 2])
            connection.execute("DELETE FROM memories WHERE id = %s", [n * 2 + 1 if n % 3 else 0])
            connection.execute("UPDATE memories SET id = id + 10000 WHERE id = %s", [n * 2 if n % 5 == 0 else 0])


@pytest.mark.parametrize("workers", [1, 3])
async def test_killed_it_goes_on_where_it_was(servers: Endpoints, dsn: str, tmp_path: Path, workers: int) -> None:
    config = config_of(servers, dsn, tmp_path, postgres={"snapshot_workers": workers})
    with source(config) as connection:
        connection.execute(MEMORIES)
        connection.execute(fill(1000))
    async with reading(config) as first:
        await written(config, first, lambda progress: state_rows(progress) >= 300)
        await first.crash()
    before = await table_dump(config)
    assert 300 <= len(before) < 1000
    async with reading(config) as second:
        await written(config, second, lambda progress: progress.snapshots[NAME].done)
    records = await table_dump(config)
    assert_in_order(records)
    assert by_id(topic_rows(records)) == by_id(rows_of(config))
    in_flight = 7 * (workers + 1)  # chunks that were written before the one in front of them
    assert 1000 <= len(records) <= 1000 + in_flight


def state_rows(progress: object) -> int:
    """Rows written by the snapshot so far."""
    states = progress.snapshots  # type: ignore[attr-defined]
    return states[NAME].rows if NAME in states else 0


@pytest.mark.parametrize("plugin", ["wal2json", "pgoutput"])
async def test_a_table_that_comes_later(servers: Endpoints, dsn: str, tmp_path: Path, plugin: str) -> None:
    """Created, and renamed into what is selected: rows from before are read by a snapshot of their own."""
    config = config_of(servers, dsn, tmp_path, postgres={"tables": ["public.memories", "public.n*"], "plugin": plugin})
    with source(config) as connection:
        connection.execute(MEMORIES)
        connection.execute("CREATE TABLE old (id int PRIMARY KEY, v text)")
        connection.execute("INSERT INTO old SELECT n, 'old' FROM generate_series(1, 30) n")
        async with reading(config) as reader:
            await written(config, reader)
            connection.execute("CREATE TABLE new (id int PRIMARY KEY, v text)")
            connection.execute("INSERT INTO new VALUES (1, 'a'), (2, 'b')")
            connection.execute("ALTER TABLE old RENAME TO next")
            connection.execute("UPDATE next SET v = 'new' WHERE id = 3")
            await written(
                config, reader,
                lambda progress: all(
                    progress.snapshots.get(f"public.{name}") and progress.snapshots[f"public.{name}"].done
                    for name in ("new", "next")
                ),
            )  # fmt: skip
            columns = {"id": "integer", "v": "text"}
            for table in ("new", "next"):
                held = by_id(topic_rows(await table_dump(config, table), columns))
                assert held == by_id(rows_of(config, table, columns))


async def test_a_table_deselected_and_selected_again_is_read_again(
    servers: Endpoints, dsn: str, tmp_path: Path
) -> None:
    config = config_of(servers, dsn, tmp_path, postgres={"tables": ["public.memories", "public.other"]})
    fewer = config.model_copy(update={"postgres": config.postgres.model_copy(update={"tables": ("public.memories",)})})
    with source(config) as connection:
        connection.execute(MEMORIES)
        connection.execute("CREATE TABLE other (id int PRIMARY KEY, v text)")
        async with reading(config) as reader:
            await written(config, reader, lambda p: len([1 for state in p.snapshots.values() if state.done]) == 2)
        async with reading(fewer) as reader:
            connection.execute("INSERT INTO other VALUES (1, 'unseen')")
            await written(config, reader)
        async with reading(config) as reader:
            await written(config, reader, lambda p: "public.other" in p.snapshots and p.snapshots["public.other"].done)
        columns = {"id": "integer", "v": "text"}
        assert topic_rows(await table_dump(config, "other"), columns) == [{"id": "1", "v": "unseen"}]


async def test_keys_of_every_kind(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    """Two columns in another order than the table's; texts with odd characters; numbers that sort otherwise as text."""
    keys = ["", " ", "a%b", "a'b", 'a"b', "a\\b", "ünï", "\u2028", "{x}", "a:b", "%s", "$1", "\t", "NULL", "Zz", "zz"]
    tables = ["public.memories", "public.two", "public.texts", "public.empty"]
    config = config_of(servers, dsn, tmp_path, postgres={"tables": tables, "snapshot_chunk_rows": 3})
    shapes = {
        "two": {"b": "text", "a": "integer", "id": "integer"},
        "texts": {"id": "text", "v": "integer"},
        "empty": {"id": "integer"},
    }
    with source(config) as connection:
        connection.execute(MEMORIES)
        connection.execute(fill(120))
        connection.execute("CREATE TABLE two (b text, a int, id int, PRIMARY KEY (a, b))")
        connection.execute("INSERT INTO two SELECT 'k' || n % 7, n % 12, n FROM generate_series(1, 60) n")
        connection.execute("CREATE TABLE texts (id text PRIMARY KEY, v int)")
        for number, key in enumerate(keys):
            connection.execute("INSERT INTO texts VALUES (%s, %s)", [key, number])
        connection.execute("CREATE TABLE empty (id int PRIMARY KEY)")
    async with pipeline(config) as running:
        await running.caught_up()
        await assert_equal_everywhere(running)
        progress = running.source.reader.progress
        assert progress is not None
        assert {name: state.rows for name, state in progress.snapshots.items()} == {
            "public.memories": 120, "public.two": 60, "public.texts": len(keys), "public.empty": 0,
        }  # fmt: skip
    for table, columns in shapes.items():
        records = await table_dump(config, table)
        expected = rows_of(config, table, columns)
        assert len(records) == len(expected)
        assert by_id(topic_rows(records, columns)) == by_id(expected)


async def test_wide_rows_end_a_chunk_early(
    servers: Endpoints, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 20_000)
    monkeypatch.setattr(snapshot, "FIRST_ROWS", 2)
    config = config_of(servers, dsn, tmp_path, postgres={"snapshot_chunk_rows": 50, "snapshot_workers": 3})
    with source(config) as connection:
        connection.execute(MEMORIES)
        connection.execute(fill(300, "repeat('w', 3000)"))
    async with reading(config) as reader:
        await written(config, reader, lambda p: NAME in p.snapshots and p.snapshots[NAME].done)
        assert reader.reader.progress is not None
        assert reader.reader.progress.snapshots[NAME].rows == 300
    records = await table_dump(config)
    assert_in_order(records)
    assert len(records) == 300
    assert len({record.position[:24] for record in records}) >= 300 * 3000 // (20_000 + 2 * 3000)
    assert by_id(topic_rows(records, COLUMNS)) == by_id(rows_of(config))


async def test_rows_that_grow_wide_are_not_waited_for(
    servers: Endpoints, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those before them said that 7,000 of them fit."""
    stopped: list[int] = []
    stop = copying._stop

    def counted(connection: PatientConnection) -> None:
        stopped.append(1)
        stop(connection)

    monkeypatch.setattr(copying, "_stop", counted)
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", 1 << 20)
    monkeypatch.setattr(snapshot, "MOST_BYTES", 2 << 20)
    config = config_of(servers, dsn, tmp_path, postgres={"snapshot_chunk_rows": 7000, "snapshot_workers": 2})
    with source(config) as connection:
        connection.execute(MEMORIES)
        connection.execute(fill(3000, "CASE WHEN n < 2000 THEN 'n' ELSE repeat('w', 50000) END"))
    async with reading(config) as reader:
        await written(config, reader, lambda p: NAME in p.snapshots and p.snapshots[NAME].done)
    records = await table_dump(config)
    assert_in_order(records)
    assert len(records) == 3000
    assert by_id(topic_rows(records, COLUMNS)) == by_id(rows_of(config))
    assert stopped


async def test_asked_for_by_message_and_not_forgotten(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    """Asked for while another one runs, then killed: the request is still in the progress."""
    config = config_of(servers, dsn, tmp_path, postgres={"snapshot_workers": 1})
    with source(config) as connection:
        connection.execute(MEMORIES)
        connection.execute(fill(500))
    request = json.dumps({"kind": "snapshot", "table": ["public", "memories"]}).encode()
    async with reading(config) as first:
        await written(config, first, lambda progress: state_rows(progress) >= 70)
        asked = await asyncio.to_thread(emit, config, request)
        await written(config, first, lambda progress: progress.commit_lsn > asked)
        await first.crash()
    async with reading(config) as second:
        await written(config, second, lambda p: p.snapshots[NAME].done and p.commit_lsn > asked)
    records = await table_dump(config)
    after = [r for r in records if int(r.position[8:24], 16) > asked and r.key not in MARKER_KEYS]
    assert {json.loads(record.key)["id"] for record in after} == set(range(1, 501))
    assert_in_order(records)


async def test_messages_of_others_are_passed_over(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    config = config_of(servers, dsn, tmp_path)
    with source(config) as connection:
        connection.execute(MEMORIES)
        async with reading(config) as reader:
            await written(config, reader)
            for content in (b"", b"no JSON", b"[1]", b'{"kind": "low"}', b'{"kind": "high"}', b'{"kind": "snapshot"}'):
                await asyncio.to_thread(emit, config, content)
            connection.execute(fill(3))
            await written(config, reader)
    assert len(await table_dump(config)) == 3
