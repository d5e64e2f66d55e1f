"""Backfills among the stream: by key, by condition, by age; placed, resumed, refused; and repairs, which are such."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer

from cdc.commands.asking_for_rows import Sent, Wanted, backfill, planned
from cdc.commands.repair import repair_keys
from cdc.config import Config
from cdc.embedded import Endpoints
from cdc.envelope import MARKER_KEYS
from cdc.errors import PreconditionError
from cdc.kafka.progress import Backfill, Progress, decode_progress, encode_progress
from cdc.migrations import migrations
from cdc.source import snapshot
from cdc.source.pace import Pace
from cdc.source.window import Chunk
from tests.chance import seeded
from tests.comparison import (
    assert_equal_everywhere,
    assert_in_order,
    by_id,
    index_rows,
    redis_rows,
    rows_of,
    table_dump,
    topic_rows,
)
from tests.pipeline import MEMORIES, Running, config_of, emit, pipeline, reading, source, written

NAME = "public.memories"
FILL = (
    "INSERT INTO memories (id, content, score, embedding)"
    " SELECT n, 't', n, ARRAY[n, 1]::real[] FROM generate_series(1, %s) n"
)
CONDITIONS = next(file for file in migrations() if file.name == "100_backfill.sql")


def made(servers: Endpoints, dsn: str, folder: Path, rows: int, **postgres: Any) -> Config:
    """With a table of so many rows, and where conditions stand."""
    config = config_of(servers, dsn, folder, postgres=postgres)
    with source(config) as connection:
        connection.execute(MEMORIES)
        connection.execute(FILL, [rows])
        connection.execute("CREATE SCHEMA cdc")
        connection.execute(CONDITIONS.text.encode())
    return config


def snapshot_done(progress: Progress) -> bool:
    return NAME in progress.snapshots and progress.snapshots[NAME].done


async def send(config: Config, **wanted: Any) -> Sent:
    """To its end."""
    plan = await asyncio.to_thread(planned, config, Wanted(NAME, **wanted))
    sent = await backfill(config, plan, lambda rows, total: None)
    assert sent is not None
    return sent


async def behind(config: Config, begun: int) -> list[tuple[int, str]]:
    """`(id, op)` of the newest records, less so many."""
    records = sorted((r for r in await table_dump(config) if r.value is not None), key=lambda r: r.position)
    assert not {record.key for record in records} & set(MARKER_KEYS)
    return sorted((json.loads(record.key)["id"], record.event["op"]) for record in records[begun:])


@pytest.mark.parametrize("plugin", ["wal2json", "pgoutput"])
async def test_exactly_what_was_asked_for(servers: Endpoints, dsn: str, tmp_path: Path, plugin: str) -> None:
    config = made(servers, dsn, tmp_path, 50, plugin=plugin)
    with source(config) as connection:
        connection.execute("ALTER TABLE memories ADD at timestamptz, ADD day date")
        connection.execute("UPDATE memories SET at = now() - id * interval '1 hour', day = now() - id * interval '1 d'")
    asked: list[tuple[Mapping[str, Any], Sent, list[tuple[int, str]]]] = [
        ({"keys": ["7", "3", "999", "7"]}, Sent(2, 1), [(3, "r"), (7, "r"), (999, "d")]),
        ({"keys": ['{"id":12}', "0012"]}, Sent(1, 0), [(12, "r")]),
        ({"where": "id <= 2 -- the first"}, Sent(2, 0), [(1, "r"), (2, "r")]),
        ({"where": "score > 49 OR id = 1"}, Sent(2, 0), [(1, "r"), (50, "r")]),
        ({"where": "content LIKE '%z%'"}, Sent(0, 0), []),
        ({"since": "150 minutes", "column": "at"}, Sent(2, 0), [(1, "r"), (2, "r")]),
        ({"since": "2d", "column": "day"}, Sent(2, 0), [(1, "r"), (2, "r")]),
        ({"since": "4h", "column": "at", "where": "id > 2"}, Sent(1, 0), [(3, "r")]),
        ({}, Sent(50, 0), [(n, "r") for n in range(1, 51)]),
    ]
    async with reading(config) as reader:
        await written(config, reader, snapshot_done)
        begun = len(await behind(config, 0))
        for wanted, sent, expected in asked:
            assert await send(config, **wanted) == sent, wanted
            assert await behind(config, begun) == expected, wanted
            begun += len(expected)
    assert_in_order(await table_dump(config))


WRONG: list[Mapping[str, Any]] = [
    *({"where": condition} for condition in (
        "no_such_column = 1", "true; DROP TABLE memories", "true) OR (true", "true) --", "id", "id = $1", "/* open",
        "1 / 0 = 1", "SELECT true", "id = 'x'", "true] OR ARRAY[true", "'open", "", "id IN (SELECT 1 FROM nowhere)",
    )),
    {"since": "1 fortnight", "column": "score"}, {"since": "1d"}, {"since": "1d", "column": "nothing"},
    {"keys": ["x"]}, {"keys": ["1"], "where": "true"}, {"keys": ['{"other": 1}']}, {"keys": ["\0"]},
    {"keys": ["99999999999"]},
]  # fmt: skip


async def test_what_postgresql_does_not_take_is_refused_before_anybody_reads_it(
    servers: Endpoints, dsn: str, tmp_path: Path
) -> None:
    config = made(servers, dsn, tmp_path, 3)
    for wanted in WRONG:
        with pytest.raises(PreconditionError) as refusal:
            planned(config, Wanted(NAME, **wanted))
        assert refusal.value.hint, wanted
    with pytest.raises(PreconditionError, match="does not travel"):
        planned(config, Wanted("public.nothing"))
    assert len(rows_of(config)) == 3


async def test_what_fails_while_it_runs_leaves_the_reader_alone(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    """A condition that holds for its first rows; one that nobody kept; messages that are no requests."""
    config = made(servers, dsn, tmp_path, 60)
    unknown, other = str(uuid4()), str(uuid4())
    ask = {"kind": "backfill", "id": unknown, "table": ["public", "memories"]}
    async with reading(config) as reader:
        await written(config, reader, snapshot_done)
        with pytest.raises(PreconditionError, match="DivisionByZero") as refusal:
            await send(config, where="1 / (id - 40) < 2")
        assert "40" not in refusal.value.message
        nonsense = [
            {**ask, "condition": 7}, {**ask, "id": "x"}, {**ask, "keys": ["1"]}, {**ask, "keys": [["\ud800"]]},
            {**ask, "keys": [["1"]], "condition": True}, {**ask, "keys": [["1"]] * 1001}, {**ask, "more": 1},
            {**ask, "keys": [["1" * 70_000]]}, {"kind": "backfill"}, {**ask, "table": ["a", "b", "c"]},
        ]  # fmt: skip
        for content in nonsense:
            await asyncio.to_thread(emit, config, json.dumps(content).encode())
        await asyncio.to_thread(emit, config, json.dumps({**ask, "condition": True}).encode())
        await asyncio.to_thread(emit, config, json.dumps({**ask, "id": other, "keys": [["1", "2"]]}).encode())
        await written(
            config, reader, lambda p: all(i in p.backfills and p.backfills[i].ended for i in (unknown, other))
        )
        assert await send(config, keys=["5"]) == Sent(1, 0)
        progress = reader.reader.progress
        assert progress is not None
        assert "no condition of this id" in (progress.backfills[unknown].failed or "")
        assert "1 columns" in (progress.backfills[other].failed or "")
        assert len(progress.backfills) == 4


@pytest.mark.parametrize("plugin", ["wal2json", "pgoutput"])
async def test_a_key_that_comes_or_goes_meanwhile(
    servers: Endpoints, dsn: str, tmp_path: Path, plugin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forced for each chunk: one key is there by the time the chunk that says it is gone is placed, and the reverse."""
    config = made(servers, dsn, tmp_path, 20, plugin=plugin)
    close_window = snapshot.ChunkReader.close_window

    def late(reader: snapshot.ChunkReader, chunk: Chunk) -> None:
        if chunk.gone:
            with source(config) as connection:
                connection.execute("INSERT INTO memories (id, who) VALUES (100, 'late')")
                connection.execute("DELETE FROM memories WHERE id = 3")
        close_window(reader, chunk)

    async with pipeline(config) as running:
        await running.caught_up()
        monkeypatch.setattr(snapshot.ChunkReader, "close_window", late)
        assert await send(config, keys=["3", "4", "100", "101"]) == Sent(2, 2)
        await running.caught_up()
        records = await assert_equal_everywhere(running)
        assert_in_order(records)
        assert [r.event["op"] for r in records if r.key == b'{"id":100}' and r.value is not None] == ["c"]
        assert [r.event["op"] for r in records if r.key == b'{"id":101}' and r.value is not None] == ["d"]


async def test_writers_go_on_while_keys_are_sent(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    chance = seeded("backfill")
    config = made(servers, dsn, tmp_path, 120)
    ending = asyncio.Event()

    def write() -> None:
        with source(config) as connection:
            while not ending.is_set():
                key, other = chance.randrange(1, 160), chance.randrange(1, 160)
                connection.execute("DELETE FROM memories WHERE id = %s", [key])
                connection.execute("INSERT INTO memories (id, who) VALUES (%s, 'w') ON CONFLICT DO NOTHING", [other])
                connection.execute("UPDATE memories SET score = score + 1 WHERE id = %s", [chance.randrange(1, 160)])

    async with pipeline(config) as running:
        await running.caught_up()
        writing = asyncio.ensure_future(asyncio.to_thread(write))
        rng = random.Random(chance.random())
        try:
            for _ in range(3):
                keys = [str(rng.randrange(1, 160)) for _ in range(40)]
                await asyncio.gather(
                    send(config, keys=keys), send(config, keys=keys[:5]), send(config, where="id > 90")
                )
        finally:
            ending.set()
            await writing
        await running.caught_up()
        assert_in_order(await assert_equal_everywhere(running))


async def test_killed_it_goes_on_where_it_was_beside_a_snapshot(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    """Of each request the state is its own."""
    config = made(servers, dsn, tmp_path, 1200, snapshot_workers=1)
    plan = planned(config, Wanted(NAME, where="id > 200"))
    keyed = planned(config, Wanted(NAME, keys=["1", "2000"]))

    def open_rows(progress: Progress) -> int:
        return max((state.rows for state in progress.backfills.values()), default=0)

    async with reading(config) as first:
        await written(config, first, lambda p: snapshot_done(p) or p.snapshots[NAME].rows > 100)
        await backfill(config, plan, lambda rows, total: None, wait=False)
        await written(config, first, lambda p: open_rows(p) >= 200)
        await first.crash()
    before = await table_dump(config)
    await backfill(config, keyed, lambda rows, total: None, wait=False)  # it waits in the slot
    async with reading(config) as second:
        await written(config, second, lambda p: len(p.backfills) == 2 and all(s.done for s in p.backfills.values()))
        await written(config, second, snapshot_done)
        progress = second.reader.progress
    assert progress is not None
    assert sorted((s.rows, s.gone) for s in progress.backfills.values()) == [(1, 1), (1000, 0)]
    assert progress.snapshots[NAME].rows == 1200
    records = await table_dump(config)
    assert_in_order(records)
    assert by_id(topic_rows(records)) == by_id(rows_of(config))
    in_flight = 7 * 4  # two jobs, one worker each; of a chunk, and of one written before the one in front of it
    assert len([r for r in records if r.value is not None]) <= 2202 + in_flight
    assert len(before) < 2202


async def test_a_row_that_only_the_stores_have_is_removed(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    """Its delete was lost, as in the failures of double writes; one key cannot be asked for, so all rows are sent."""
    config = made(servers, dsn, tmp_path, 40)
    async with pipeline(config) as running:
        await running.caught_up()
        await plant(running, b'{"id":999}', "999")
        assert "999" in {row["id"] for row in redis_rows(config)}
        assert "999" in await index_rows(running.index)
        count = await repair_keys(config, NAME, [b'{"id":999}', b'{"id":1}'], lambda line: None)
        assert count == 2
        await running.caught_up()
        await assert_equal_everywhere(running)
        await plant(running, b'{"id":998}', "998")
        assert await repair_keys(config, NAME, [b'{"id":998}', b'{"former":1}'], lambda line: None) == 40
        await running.caught_up()
        await assert_equal_everywhere(running)
        assert await repair_keys(config, NAME, [b'{"id":%d}' % n for n in range(1, 21)], lambda line: None) == 40


async def plant(running: Running, key: bytes, text: str) -> None:
    """A record of another's row under this key, which no stream will ever delete."""
    config = running.config
    pattern = next(r for r in await table_dump(config) if r.key == b'{"id":1}' and r.value is not None)
    value = (pattern.value or b"").replace(b'"id":1,', b'"id":%b,' % text.encode(), 1)
    producer = AIOKafkaProducer(**config.kafka.client_options())
    await producer.start()
    try:
        topic = config.kafka.table_topic("public", "memories")
        await producer.send_and_wait(topic, value, key=key, headers=list(pattern.headers.items()))
    finally:
        await producer.stop()
    await running.caught_up()


async def test_no_more_is_offered_between_two_waits_than_the_rate_allows(
    servers: Endpoints, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = made(servers, dsn, tmp_path, 90, snapshot_chunk_rows=1000, snapshot_workers=3)
    sent: list[int] = []
    pause = Pace.sent

    async def counted(pace: Pace, rows: int) -> None:
        sent.append(rows)
        if pace._rate is not None:
            pace._sleep = instead
        await pause(pace, rows)

    waits: list[float] = []

    async def instead(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(Pace, "sent", counted)
    async with reading(config) as reader:
        await written(config, reader, snapshot_done)
        assert sent == [90]
        sent.clear()
        assert await send(config, rate=10) == Sent(90, 0)
    assert sum(sent) == 90
    assert max(sent) <= 10
    assert len(waits) == len(sent)


async def test_a_pause_is_as_long_as_the_rows_before_it_take() -> None:
    now = 100.0
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        waits.append(seconds)
        now += seconds

    pace = Pace(50, sleep=sleep, clock=lambda: now)
    await pace.sent(100)
    await pace.sent(25)
    now += 60  # idle: nothing is saved up for a burst
    await pace.sent(5)
    assert waits == pytest.approx([2, 0.5, 0.1])
    await Pace(None, sleep=sleep, clock=lambda: now).sent(1000)
    assert len(waits) == 3


def test_records_of_before_there_were_backfills() -> None:
    old = b'{"source":"s","slot":"s","system_id":"1","timeline":1,"epoch":1,"snapshots":{"public.t":{"done":true}}}'
    assert decode_progress(old).backfills == {}
    state = Backfill(table=NAME, keys=[["1"]], after=["1"], rows=3, rate=4)
    progress = decode_progress(old)
    progress.backfills["x"] = state
    assert decode_progress(encode_progress(progress)).backfills == {"x": state}
