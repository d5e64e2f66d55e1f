"""The runtime against a real Kafka: whatever is killed, lost or repeated, the store ends as the topics say."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from prometheus_client import REGISTRY

from cdc.config import Config, parse
from cdc.errors import StoreError
from cdc.position import Position
from consumers.letters import read_dead_letters
from consumers.runtime import Runtime
from consumers.store import Applied, Batch, Offsets
from tests.memory_store import Memory, MemoryStore
from tests.topic_writer import TopicWriter
from tests.waiting import LIMIT_SECONDS, until

TABLE = "public.memories"
_NUMBERS = itertools.count(time.time_ns() // 1_000_000)


@pytest.fixture
def config(servers: Any) -> Config:
    """A prefix of its own for each test, so that they share one Kafka."""
    prefix = f"t{next(_NUMBERS)}"
    kafka = {"bootstrap": servers.kafka_bootstrap, "prefix": prefix, "partitions": 2}
    return parse({"postgres": {"dsn": "postgresql://unused"}, "kafka": kafka})


@pytest.fixture
async def topics(config: Config) -> AsyncIterator[TopicWriter]:
    """A writer with one table."""
    async with TopicWriter(config) as writer:
        await writer.create(TABLE)
        yield writer


@contextlib.asynccontextmanager
async def running(config: Config, store: MemoryStore, **options: Any) -> AsyncIterator[Runtime]:
    """A consumer that is stopped, not killed, at the end."""
    runtime = Runtime(config, store, **{"exclusive": True, "counts": store, "check_seconds": 0.1, **options})
    task = asyncio.ensure_future(runtime.run())
    try:
        yield runtime
    finally:
        runtime.stop()
        await task


def rows(numbers: Iterator[int] | range, text: str = "text") -> list[dict[str, Any]]:
    """Rows with these ids."""
    return [{"id": number, "text": f"{text} {number}"} for number in numbers]


def live(memory: Memory) -> int:
    """Live rows of all tables."""
    return sum(row[2] is not None for table in memory.live.rows.values() for row in table.values())


def sample(name: str, **labels: str) -> float | None:
    """A metric's value."""
    return REGISTRY.get_sample_value(name, labels)


@pytest.mark.parametrize("exclusive", [True, False])
async def test_everything_arrives_and_is_committed(config: Config, topics: TopicWriter, exclusive: bool) -> None:
    memory = Memory()
    await topics.put(TABLE, rows(range(300)))
    async with running(config, MemoryStore(memory), exclusive=exclusive) as runtime:
        await until(lambda: live(memory) == 300, "300 rows")
        await topics.delete(TABLE, range(100))
        await topics.put(TABLE, rows(range(100, 150), "new"), op="u")
        await until(lambda: live(memory) == 200, "100 deletes")
        ends = await topics.ends()
        topic = config.kafka.table_topic("public", "memories")
        expected = {(topic, number): end for number, end in enumerate(ends[topic])}
        # positions pass the marks that end transactions, so equality, not "almost"
        await until(lambda: runtime.partitions.reached == expected, "the end of the log")
    assert sample("cdc_store_rows", store="memory", table=TABLE) == 200
    assert sample("cdc_store_offset_lag_records", store="memory") == 0


async def test_topics_that_come_later_are_found(config: Config, topics: TopicWriter) -> None:
    memory = Memory()
    async with running(config, MemoryStore(memory)) as runtime:
        await topics.put(TABLE, rows(range(5)))
        await until(lambda: live(memory) == 5, "the first table")
        await topics.create("public.notes")
        await topics.put("public.notes", rows(range(7)))
        await topics.heartbeat()  # it speaks of the new topic, so that nobody waits for the next look round
        await until(lambda: live(memory) == 12, "the second table")
        await until(lambda: runtime.freshness.at is not None, "a heartbeat")
    assert memory.written == 12


async def test_a_killed_consumer_repeats_without_changing(config: Config, topics: TopicWriter) -> None:
    memory = Memory(lazy=True)  # applied, visible, and lost for the offsets: the kill comes before durable
    await topics.put(TABLE, rows(range(200)))
    killed = asyncio.ensure_future(Runtime(config, MemoryStore(memory), exclusive=True).run())
    await until(lambda: live(memory) == 200, "200 rows")
    killed.cancel()
    await asyncio.wait({killed})
    assert memory.live.offsets == {}
    before, written = dict(memory.live.rows), memory.written
    async with running(config, MemoryStore(memory)) as runtime:
        await until(lambda: sum(runtime.partitions.reached.values()) >= 200, "the replay")
    assert memory.live.rows == before
    assert memory.written == written
    assert sum(memory.live.offsets.values()) >= 200  # a stopped one has flushed


async def test_the_start_is_the_store_not_the_group(config: Config, topics: TopicWriter) -> None:
    memory = Memory()
    await topics.put(TABLE, rows(range(50)))
    for _time in range(2):
        async with running(config, MemoryStore(memory), exclusive=False):
            await until(lambda: live(memory) == 50, "a group that has committed must not keep an empty store empty")
        memory.wipe()


async def test_a_store_that_lost_its_data_is_refilled_while_idle(config: Config, topics: TopicWriter) -> None:
    memory = Memory()
    await topics.put(TABLE, rows(range(60)))
    async with running(config, MemoryStore(memory)):
        await until(lambda: live(memory) == 60, "60 rows")
        memory.wipe()
        await until(lambda: live(memory) == 60, "the refill")
    assert sample("cdc_store_rebuilds_total", store="memory", reason="lost") or 0 >= 1


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


async def test_two_consumers_share_and_lose_nothing(config: Config, topics: TopicWriter) -> None:
    memory = Memory()
    await topics.put(TABLE, rows(range(100)))
    async with running(config, MemoryStore(memory), exclusive=False) as first:
        await until(lambda: live(memory) == 100, "the first consumer has all")
        async with running(config, MemoryStore(memory), exclusive=False) as second:
            for start in range(100, 400, 20):
                await topics.put(TABLE, rows(range(start, start + 20)))
            await until(lambda: len(second.partitions.owned) == 1 and second.partitions.placed, "a partition moved")
            assert len(first.partitions.owned) == 1
            await topics.put(TABLE, rows(range(400, 500)))
            await until(lambda: live(memory) == 500, "nothing lost between the two")
        await topics.put(TABLE, rows(range(500, 600)))
        await until(lambda: live(memory) == 600, "the first takes over again")
    assert memory.written == 600


async def test_offsets_that_the_log_does_not_have_are_noticed(config: Config, topics: TopicWriter) -> None:
    memory = Memory()
    topic = config.kafka.table_topic("public", "memories")
    memory.live.offsets = {(topic, 0): 5000, (topic, 1): 5000}  # of a topic that was deleted and made anew
    await topics.put(TABLE, rows(range(30)))
    async with running(config, MemoryStore(memory)):
        await until(lambda: live(memory) == 30, "the new log, from its beginning")
    assert sample("cdc_store_rebuilds_total", store="memory", reason="offsets") or 0 >= 1
    assert memory.live.offsets[topic, 0] < 5000


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
    async with running(away, MemoryStore(Memory())):
        await until(lambda: (sample("cdc_store_retries_total", store="memory", reason="kafka") or 0) > 1, "two tries")


async def test_freshness_moves_only_with_what_is_applied(config: Config, topics: TopicWriter) -> None:
    gate = asyncio.Event()

    class Gated(MemoryStore):
        async def apply(self, batch: Batch) -> Applied:
            await gate.wait()
            return await super().apply(batch)

    memory = Memory()
    async with running(config, Gated(memory)) as runtime:
        first = await topics.heartbeat()
        await until(lambda: runtime.freshness.at == first / 1e6, "fresh while idle")
        await topics.put(TABLE, rows(range(10)))
        second = await topics.heartbeat()
        pending = runtime.freshness._pending
        await until(lambda: len(pending) == 1, "the second heartbeat")
        assert runtime.freshness.at == first / 1e6
        gate.set()
        await until(lambda: runtime.freshness.at == second / 1e6, "fresh once applied")
        assert sample("cdc_store_applied_timestamp_seconds", store="memory") == second / 1e6
        assert sample("cdc_store_watermark_lsn_bytes", store="memory") == topics.position.commit_lsn
        await topics.heartbeat(ts_us=first)  # a clock that was set back
        third = await topics.heartbeat()
        await until(lambda: runtime.freshness.at == third / 1e6, "the next one")
        assert live(memory) == 10


async def test_a_position_can_be_waited_for(config: Config, topics: TopicWriter) -> None:
    memory = Memory()
    async with running(config, MemoryStore(memory)) as runtime:
        position = (await topics.put(TABLE, rows(range(50)))).encode()
        await asyncio.wait_for(runtime.wait_for(position), 20)
        assert live(memory) == 50
        future = topics.next_position().encode()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(runtime.wait_for(future), 0.3)
        await topics.heartbeat()
        await asyncio.wait_for(runtime.wait_for(future), 20)


async def test_a_large_record_passes(config: Config, topics: TopicWriter) -> None:
    memory = Memory()
    await topics.put(TABLE, [{"id": 1, "text": "x" * (20 << 20)}, *rows(range(2, 10))])
    async with running(config, MemoryStore(memory)):
        await until(lambda: live(memory) == 9, "20 MiB beside small ones")


async def test_only_the_tables_asked_for(config: Config, topics: TopicWriter) -> None:
    memory = Memory()
    await topics.create("public.notes")
    await topics.put("public.notes", rows(range(7)))
    await topics.put(TABLE, rows(range(5)))
    async with running(config, MemoryStore(memory), tables=[TABLE]):
        await until(lambda: live(memory) == 5, "one table")
    assert set(memory.live.rows) == {("public", "memories")}


async def test_offsets_are_what_flush_says(config: Config, topics: TopicWriter) -> None:
    """What goes to the group is what the store made durable, not what was polled."""
    memory = Memory(lazy=True)
    seen: list[Offsets] = []

    class Watched(MemoryStore):
        async def flush(self, *, force: bool = False) -> Offsets:
            seen.append(await super().flush(force=force))
            return seen[-1]

    await topics.put(TABLE, rows(range(30)))
    async with running(config, Watched(memory)):
        await until(lambda: live(memory) == 30, "30 rows")
    assert seen[0] == {}
    assert sum(seen[-1].values()) >= 30


@pytest.mark.parametrize("running_on", [True, False])
async def test_a_topic_made_anew_is_read_from_its_beginning(
    config: Config, topics: TopicWriter, running_on: bool
) -> None:
    """The new log has outgrown the offset in the old one, so that no offset tells of it."""
    memory = Memory()
    await topics.put(TABLE, rows(range(10)))

    async def anew() -> None:
        await topics.drop(TABLE)
        await topics.recreate(TABLE)
        await topics.put(TABLE, rows(range(100, 400)))

    async with running(config, MemoryStore(memory), exclusive=False):
        await until(lambda: live(memory) == 10, "the first log")
        if running_on:
            await anew()
            await until(lambda: live(memory) == 310, "the second log, while running")
    if not running_on:
        await anew()
        async with running(config, MemoryStore(memory), exclusive=False):
            await until(lambda: live(memory) == 310, "the second log, after a restart")


async def test_a_killed_member_is_followed_at_once(config: Config, topics: TopicWriter) -> None:
    memory = Memory()
    await topics.put(TABLE, rows(range(10)))
    with consumer_process(config) as child:
        await until(lambda: owned_by(config), "a member that has the partitions")
        child.kill()
        child.wait()
    begun = time.monotonic()
    async with running(config, MemoryStore(memory), exclusive=False):
        await until(lambda: live(memory) == 10, "the partitions of the dead member", 5.0)  # its session lasts 10
    print(f"partitions of a killed member: {time.monotonic() - begun:.2f} s")


_MEMBER = """
import asyncio, sys
from cdc.config import Config
from consumers.runtime import Runtime
from tests.memory_store import Memory, MemoryStore
config = Config.model_validate_json(sys.argv[1])
asyncio.run(Runtime(config, MemoryStore(Memory()), exclusive=False).run())
"""


@contextlib.contextmanager
def consumer_process(config: Config) -> Iterator[subprocess.Popen[bytes]]:
    """A member of the group that can be killed."""
    child = subprocess.Popen([sys.executable, "-c", _MEMBER, config.model_dump_json()])
    try:
        yield child
    finally:
        child.kill()
        child.wait()


async def owned_by(config: Config) -> bool:
    """Whether the group has a member that has its partitions."""
    admin: Any = AIOKafkaAdminClient(**config.kafka.client_options())
    try:
        await admin.start()
        (answer,) = await admin.describe_consumer_groups([f"cdc-memory-{config.kafka.prefix}"])
    except KafkaError:
        return False  # the coordinator is not there yet
    finally:
        await admin.close()
    return answer.groups[0][2] == "Stable" and bool(answer.groups[0][5])
