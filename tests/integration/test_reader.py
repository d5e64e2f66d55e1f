"""The reader from PostgreSQL to topics and stores: every change once, in order, whatever is killed."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cdc.config import Config, parse
from cdc.embedded import Endpoints
from cdc.errors import FencedError, PreconditionError
from cdc.kafka.progress import Progress, read_progress
from cdc.reader import Reader
from cdc.resync import resync
from cdc.source import relations
from cdc.source.heartbeat import HEARTBEAT
from cdc.source.stream import SlotBusy
from tests.comparison import Record, assert_equal_everywhere, assert_in_order, by_id, rows_of, table_dump, topic_rows
from tests.pipeline import MEMORIES, CommandChild, config_of, emit, pipeline, reading, settings, source, written
from tests.waiting import LIMIT_SECONDS, until

MIB = 1 << 20


def put(first: int, last: int, content: str = "'text ' || n") -> str:
    """SQL that inserts rows."""
    return (  # the test's own numbers
        "INSERT INTO memories SELECT n, 'user ' || n % 3, " + content + ", n / 7.0, n::numeric / 4, "
        "jsonb_build_object('n', n), array[n, 1, 2, 3, 4, 5, 6, 7]::real[] "
        f"FROM generate_series({first}, {last}) n"
    )


async def test_every_kind_of_change_reaches_all_stores(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    config = config_of(servers, dsn, tmp_path)
    with source(config) as connection:
        connection.execute(MEMORIES)
        connection.execute(put(1, 30))
        async with pipeline(config) as running:
            await running.caught_up()
            await assert_equal_everywhere(running)
            for statement in (
                put(31, 60, "repeat('long ', 1000)"),
                "UPDATE memories SET who = 'x' WHERE id > 20",
                "UPDATE memories SET id = id + 100 WHERE id IN (1, 40)",
                "UPDATE memories SET score = 'NaN', amount = 'NaN' WHERE id = 2",
                "UPDATE memories SET score = '-Infinity' WHERE id = 3",
                "UPDATE memories SET embedding = NULL, tags = NULL WHERE id = 4",
                "DELETE FROM memories WHERE id % 5 = 0",
            ):
                connection.execute(statement)
            await running.caught_up()
            assert_in_order(await assert_equal_everywhere(running))
            connection.execute("TRUNCATE memories")
            connection.execute(put(5, 9))
            await running.caught_up()
            assert_in_order(await assert_equal_everywhere(running))


def snapshots_done(progress: Progress) -> bool:
    return bool(progress.snapshots) and all(state.done for state in progress.snapshots.values())


async def test_a_large_transaction_is_cut_and_killed_between_the_cuts(
    servers: Endpoints, dsn: str, tmp_path: Path
) -> None:
    config = config_of(servers, dsn, tmp_path, kafka={"transaction_rows": 50})
    with source(config) as connection:
        connection.execute(MEMORIES)
        async with reading(config) as first:
            await written(config, first, snapshots_done)  # else a chunk of it may read what is written next
            connection.execute(put(1, 1000))
            await written(config, first, lambda progress: not progress.complete and progress.ordinal >= 100)
            await first.crash()
        assert 100 <= len(await table_dump(config)) < 1000
        left = await read_progress(config)
        assert left is not None
        assert not left.complete
        async with reading(config) as second:
            await written(config, second)
        records = await table_dump(config)
        assert_in_order(records)
        assert sorted(int(record.position[24:], 16) for record in records) == list(range(1, 1001))
        assert by_id(topic_rows(records)) == by_id(rows_of(config))


async def test_at_least_once_loses_nothing(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    config = config_of(servers, dsn, tmp_path, kafka={"transaction_rows": 50, "delivery": "at-least-once"})
    with source(config) as connection:
        connection.execute(MEMORIES)
        async with pipeline(config) as running:
            await running.caught_up()
            connection.execute(put(1, 1000))
            await written(config, running.source, lambda progress: progress.ordinal >= 100)
            await running.restart()
            connection.execute("DELETE FROM memories WHERE id % 2 = 0")
            await running.restart()
            connection.execute("UPDATE memories SET who = 'last'")
            await running.caught_up()
            await assert_equal_everywhere(running)


async def test_killed_as_a_process_and_bounded_in_memory(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    """200,000 rows in one transaction, SIGKILL in its middle: every row once, far below the transaction's size."""
    data = settings(servers, dsn, tmp_path)
    config = parse(data)
    with source(config) as connection:
        connection.execute(MEMORIES)
        child = CommandChild(data, tmp_path, "reader")
        try:
            await until(lambda: progressed(config, child, lambda progress: True), "the first progress")
            connection.execute(put(1, 200_000, "repeat('c', 200)"))
            await until(lambda: progressed(config, child, lambda progress: not progress.complete), "a cut")
            child.kill()
            child = CommandChild(data, tmp_path, "reader")
            end = await asyncio.to_thread(emit, config, HEARTBEAT)
            await until(lambda: progressed(config, child, lambda progress: progress.commit_lsn >= end), "the end")
            peak = child.peak_bytes()
            assert child.stop() == 0
        finally:
            child.kill()
    records = await table_dump(config)
    ids = {json.loads(record.key)["id"] for record in records}
    assert len(records) == len(ids) == 200_000
    assert_in_order(records)
    assert peak < 400 * MIB, peak // MIB


async def progressed(config: Config, child: CommandChild, what: Callable[[Progress], bool]) -> bool:
    assert child.process.poll() is None, child.log.read_text()[-2000:]
    progress = await read_progress(config)
    return progress is not None and what(progress)


async def test_masks_are_applied_before_kafka(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    """No byte of a masked value in any record, also where the reader selects columns or reads a snapshot."""
    masks = {"content": "redact", "who": "hash", "tags": "drop"}
    config = config_of(
        servers, dsn, tmp_path, mask_secret="pepper", tables={"public.memories": {"mask": masks, "vector": "embedding"}}
    )  # fmt: skip
    with source(config) as connection:
        connection.execute(MEMORIES)
        connection.execute(put(1, 20, "repeat('covert', 1000)"))
        async with reading(config) as reader:
            await written(config, reader, lambda progress: all_done(progress))
            connection.execute("UPDATE memories SET who = 'covert' WHERE id < 10")
            connection.execute("UPDATE memories SET score = 'NaN' WHERE id < 5")
            await written(config, reader)
    records = await table_dump(config)
    assert not [record.key for record in records if b"covert" in (record.value or b"")]
    assert {key(record) for record in records} == set(range(1, 21))
    after = records[-1].event["after"]
    assert after["content"] == "***"
    assert len(after["who"]) == 64
    assert "tags" not in after


def key(record: Record) -> int:
    return int(json.loads(record.key)["id"])


def all_done(progress: Progress) -> bool:
    return bool(progress.snapshots) and all(state.done for state in progress.snapshots.values())


async def test_a_table_dropped_while_its_rows_wait(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    """Its rows cannot be selected any more: the reader goes on, and the others arrive."""
    config = config_of(servers, dsn, tmp_path, postgres={"tables": ["public.memories", "public.gone"]})
    with source(config) as connection:
        connection.execute(MEMORIES)
        connection.execute("CREATE TABLE gone (id int PRIMARY KEY, big text, n int)")
        connection.execute("ALTER TABLE gone ALTER big SET STORAGE EXTERNAL")
        async with reading(config) as reader:
            await written(config, reader, all_done)
            connection.execute("INSERT INTO gone VALUES (1, repeat('x', 5000), 1)")
            connection.execute("UPDATE gone SET n = 2")
            connection.execute("DROP TABLE gone")
            connection.execute(put(1, 10))
            await written(config, reader)
        records = await table_dump(config)
        assert_in_order(records)
        assert by_id(topic_rows(records)) == by_id(rows_of(config))


@pytest.mark.parametrize("plugin", ["wal2json", "pgoutput"])
async def test_a_key_renamed_while_its_rows_wait(servers: Endpoints, dsn: str, tmp_path: Path, plugin: str) -> None:
    """A new name of the key is another key in the topics. pgoutput goes on; wal2json does not tell the row's key any
    more, and the reader says that only a resync helps."""
    config = config_of(servers, dsn, tmp_path, postgres={"plugin": plugin})
    with source(config) as connection:
        connection.execute(MEMORIES)
        async with reading(config) as reader:
            connection.execute(put(1, 1, "repeat('x', 5000)"))
            await written(config, reader, all_done)
            await written(config, reader)
        connection.execute("UPDATE memories SET who = 'waits'")
        connection.execute("ALTER TABLE memories RENAME id TO ident")
        if plugin == "wal2json":
            with pytest.raises(PreconditionError, match="comes without its key"):
                await asyncio.wait_for(Reader(config).run(), LIMIT_SECONDS)
            await resync(config)
        async with reading(config) as reader:
            await written(config, reader)
            await written(config, reader, all_done)
    rows = [record.event["after"] for record in await table_dump(config) if record.value]
    assert "waits" in [row["who"] for row in rows if row]


@pytest.mark.parametrize("plugin", ["wal2json", "pgoutput"])
async def test_holes_before_and_after_a_column_came_in_one_chunk(
    servers: Endpoints, dsn: str, tmp_path: Path, plugin: str
) -> None:
    """Unchanged TOAST of rows with fewer and with more columns, filled together."""
    config = config_of(servers, dsn, tmp_path, postgres={"plugin": plugin})
    with source(config) as connection:
        connection.execute(MEMORIES)
        connection.execute(put(1, 9))
        async with reading(config) as first:
            await written(config, first, snapshots_done)
        connection.execute("UPDATE memories SET content = repeat(content, 3000), score = 'NaN'")
        connection.execute("UPDATE memories SET who = 'before' WHERE id < 5")
        connection.execute(
            "ALTER TABLE memories DROP amount, ADD more text DEFAULT 'm', ADD amount numeric DEFAULT 'NaN'"
        )
        connection.execute("UPDATE memories SET who = 'after' WHERE id > 3")
        connection.execute("ALTER TABLE memories DROP more")
        connection.execute("UPDATE memories SET who = 'last' WHERE id > 7")
        async with reading(config) as second:
            await written(config, second)
            await written(config, second, snapshots_done)
        assert by_id(topic_rows(await table_dump(config))) == by_id(rows_of(config))


async def test_the_catalog_is_asked_beside_the_loop(
    servers: Endpoints, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wal2json needs it for each live transaction; a chunk that is under way goes on meanwhile."""
    if servers.plugin != "wal2json":
        pytest.skip("this PostgreSQL has no wal2json")
    asked: list[threading.Thread] = []
    horizon = relations.horizon

    def noted(run: relations.Runs, oids: list[int]) -> tuple[int, str]:
        asked.append(threading.current_thread())
        return horizon(run, oids)

    config = config_of(servers, dsn, tmp_path, postgres={"plugin": "wal2json"})
    with source(config) as connection:
        connection.execute(MEMORIES)
        async with reading(config) as reader:
            await written(config, reader, snapshots_done)
            monkeypatch.setattr(relations, "horizon", noted)
            for number in range(3):
                connection.execute(put(10 * number, 10 * number + 9))
                await written(config, reader)
    assert any(thread is not threading.main_thread() for thread in asked)


@pytest.mark.parametrize("ends", [[SlotBusy("another one"), None], [FencedError("another one")]])
async def test_who_was_fenced_begins_anew_once(monkeypatch: pytest.MonkeyPatch, ends: list[Exception | None]) -> None:
    """It may have hung, and a standby may have taken over, whose slot it then waits for; a second time it is no standby
    but a reader with a slot of its own, and both would go on like that for ever."""
    reader = Reader(parse({"postgres": {"dsn": "dbname=unused"}, "kafka": {"bootstrap": "unused"}}), gap_seconds=0)
    sessions: Iterator[Exception | None] = iter([FencedError("another one"), *ends])

    async def session() -> None:
        if (error := next(sessions)) is not None:
            raise error
        reader.stop()

    monkeypatch.setattr(reader, "_session", session)
    running = asyncio.wait_for(reader.run(), LIMIT_SECONDS)
    if ends[-1] is None:
        await running
    else:
        with pytest.raises(FencedError):
            await running
    assert next(sessions, None) is None
