"""What the runtime does when stores, records or Kafka are not as they should be, against a real Kafka."""

from __future__ import annotations

import asyncio

import pytest

from cdc.config import Config, parse
from cdc.errors import StoreError
from cdc.position import Position
from consumers.letters import read_dead_letters
from consumers.runtime import Runtime
from consumers.store import Applied, Batch
from tests.memory_store import Memory, MemoryStore, live, rows, running, sample
from tests.topic_writer import TopicWriter
from tests.waiting import LIMIT_SECONDS, until

TABLE = "public.memories"


async def test_a_store_that_lost_its_data_is_refilled_while_idle(config: Config, topics: TopicWriter) -> None:
    memory = Memory()
    before = sample("cdc_store_rebuilds_total", store="memory", reason="lost") or 0
    await topics.put(TABLE, rows(range(60)))
    async with running(config, MemoryStore(memory)):
        await until(lambda: live(memory) == 60, "60 rows")
        memory.wipe()
        await until(lambda: live(memory) == 60, "the refill")
    assert (sample("cdc_store_rebuilds_total", store="memory", reason="lost") or 0) > before


async def test_a_store_that_is_away_is_waited_for(config: Config, topics: TopicWriter) -> None:
    memory = Memory(away=True)
    await topics.put(TABLE, rows(range(20)))
    async with running(config, MemoryStore(memory), exclusive=False):
        await until(lambda: sample("cdc_store_up", store="memory") == 0, "the store shown as down")
        memory.away = False
        await until(lambda: live(memory) == 20, "20 rows")
        memory.away = True
        await topics.put(TABLE, rows(range(20, 40)))
        await until(lambda: sample("cdc_store_up", store="memory") == 0, "the store shown as down again")
        memory.away = False
        await until(lambda: live(memory) == 40, "40 rows")


async def test_a_stop_while_the_store_is_away_ends(config: Config, topics: TopicWriter) -> None:
    async with running(config, MemoryStore(Memory(away=True))):
        await until(lambda: sample("cdc_store_up", store="memory") == 0, "the store shown as down")


async def test_repeated_and_late_records_change_nothing(config: Config, topics: TopicWriter) -> None:
    memory = Memory()
    old, new = topics.next_position(), topics.next_position()
    row = {"id": 1, "text": "new"}
    late = topics.item(TABLE, "c", {"id": 1, "text": "old"}, old)
    key, gone, _position = topics.item(TABLE, "d", {"id": 2}, new)
    await topics.write(TABLE, [topics.item(TABLE, "u", row, new), late, topics.item(TABLE, "u", row, new)])
    await topics.write(TABLE, [(key, gone, new), (key, None, new)])
    await topics.write(TABLE, [topics.item(TABLE, "c", {"id": 2, "text": "old"}, old)])  # must not come back
    await topics.put(TABLE, rows(range(3, 4)))
    async with running(config, MemoryStore(memory)):
        await until(lambda: live(memory) == 2, "rows 1 and 3")
    assert b'"new"' in (memory.live.rows["public", "memories"][b'{"id":1}'][2] or b"")
    assert memory.live.rows["public", "memories"][b'{"id":2}'][2] is None


@pytest.mark.parametrize("sweep", [False, True])
async def test_markers_remove_what_is_older(config: Config, topics: TopicWriter, sweep: bool) -> None:
    memory = Memory()
    await topics.put(TABLE, rows(range(40)))
    await topics.truncate(TABLE, sweep=sweep)
    await topics.put(TABLE, rows(range(30, 45)))
    async with running(config, MemoryStore(memory), batch_records=7):
        await until(lambda: live(memory) == 15, "rows written after the marker only")
    held = memory.live.rows["public", "memories"]
    assert set(held) == {b'{"id":%d}' % number for number in range(30, 45)}


@pytest.mark.parametrize("raises", [False, True])
async def test_dead_letters_carry_the_record_and_the_reason(config: Config, topics: TopicWriter, raises: bool) -> None:
    memory = Memory(raises=raises)
    await topics.put(TABLE, [*rows(range(30)), {"id": 99, "text": "poison"}, *rows(range(30, 60))])
    await topics.foreign(TABLE, b"strange", b"not json")
    async with running(config, MemoryStore(memory)):
        await until(lambda: live(memory) == 60, "all good rows")
    letters = {letter.key: letter async for letter in read_dead_letters(config, "memory")}
    assert set(letters) == {b'{"id":99}', b"strange"}
    poison = letters[b'{"id":99}']
    assert (poison.reason, poison.message, poison.store) == ("poison", "a poisoned record", "memory")
    assert poison.topic == config.kafka.table_topic("public", "memories")
    assert b'"poison"' in (poison.value or b"")
    assert poison.position == Position(1, topics.position.commit_lsn, 30).encode()
    assert letters[b"strange"].reason == "foreign"


async def test_no_dead_letters_yet(config: Config, topics: TopicWriter) -> None:
    assert [letter async for letter in read_dead_letters(config, "memory")] == []


async def test_an_unknown_error_stops_the_process(config: Config, topics: TopicWriter) -> None:
    class Broken(MemoryStore):
        async def apply(self, batch: Batch) -> Applied:
            raise StoreError("the store says something nobody knows", hint="ask")

    await topics.put(TABLE, rows(range(3)))
    memory = Memory()
    with pytest.raises(StoreError, match="nobody knows"):
        await asyncio.wait_for(Runtime(config, Broken(memory), exclusive=True).run(), LIMIT_SECONDS)
    assert memory.live.offsets == {}


async def test_kafka_that_comes_up_last_is_waited_for(config: Config, topics: TopicWriter) -> None:
    away = parse({**config.model_dump(), "kafka": {"bootstrap": "127.0.0.1:9", "prefix": config.kafka.prefix}})

    def tries() -> float:
        return sample("cdc_store_retries_total", store="memory", reason="kafka") or 0

    before = tries()
    async with running(away, MemoryStore(Memory())):
        await until(lambda: tries() > before + 1, "two tries")


async def test_a_large_record_passes(config: Config, topics: TopicWriter) -> None:
    memory = Memory()
    await topics.put(TABLE, [{"id": 1, "text": "x" * (20 << 20)}, *rows(range(2, 10))])
    async with running(config, MemoryStore(memory)):
        await until(lambda: live(memory) == 9, "20 MiB beside small ones")
