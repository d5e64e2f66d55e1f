"""The runtime against a real Kafka: whatever is killed, lost or repeated, the store ends as the topics say."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from cdc.config import Config
from cdc.envelope import POSITION_HEADER, VERSION_HEADER
from cdc.position import Position
from cdc.version import encode_vector
from consumers.runtime import Runtime
from consumers.store import Applied, Batch, Offsets
from tests.memory_store import Memory, MemoryStore, live, rows, running, sample
from tests.topic_writer import TopicWriter
from tests.waiting import LIMIT_SECONDS, until

TABLE = "public.memories"


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


async def test_an_idle_store_is_past_what_nobody_sees(config: Config, topics: TopicWriter) -> None:
    """Marks that end Kafka's transactions, aborted records: verify waits until a store's offsets are the log's end."""
    memory = Memory()
    await topics.put(TABLE, rows(range(50)))
    async with running(config, MemoryStore(memory)):
        await until(lambda: live(memory) == 50, "50 rows")
        for number in range(10):
            await topics.aborted(TABLE, b"%d" % number)
        topic = config.kafka.table_topic("public", "memories")
        ends = {(topic, number): end for number, end in enumerate((await topics.ends())[topic])}
        await until(lambda: memory.live.offsets == ends, "the store at the end of the log")


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
    before = sample("cdc_store_rebuilds_total", store="memory", reason="offsets") or 0
    memory.live.offsets = {(topic, 0): 5000, (topic, 1): 5000}  # of a topic that was deleted and made anew
    await topics.put(TABLE, rows(range(30)))
    async with running(config, MemoryStore(memory)):
        await until(lambda: live(memory) == 30, "the new log, from its beginning")
    assert (sample("cdc_store_rebuilds_total", store="memory", reason="offsets") or 0) > before
    assert memory.live.offsets[topic, 0] < 5000


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
        await asyncio.wait_for(runtime.wait_for(position), LIMIT_SECONDS)
        assert live(memory) == 50
        future = topics.next_position().encode()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(runtime.wait_for(future), 0.3)
        await topics.heartbeat()
        await asyncio.wait_for(runtime.wait_for(future), LIMIT_SECONDS)


async def test_a_position_is_not_reached_while_its_commit_has_come_to_some_partitions_only(
    config: Config, topics: TopicWriter
) -> None:
    """The marks that commit a transaction are written partition by partition: until the last one is, a store lacks rows
    of it although others can be read. Here as two transactions, of which the second partition's is still open."""
    memory, partner = Memory(), AIOKafkaProducer(**config.kafka.client_options(), transactional_id="partner")
    topic = config.kafka.table_topic("public", "memories")
    async with running(config, MemoryStore(memory), exclusive=True) as runtime:
        await partner.start()
        try:
            first = topics.next_position()
            (row, other), last = rows(range(2)), Position(1, first.commit_lsn, 1)
            async with partner.transaction():
                key, value, _position = topics.item(TABLE, "c", row, first)
                headers = [(POSITION_HEADER, first.encode()), (VERSION_HEADER, encode_vector({"memories": 1}))]
                await partner.send_and_wait(topic, value, key=key, headers=headers, partition=1)
                await topics.write(TABLE, [topics.item(TABLE, "c", other, last)], partition=0)
                await until(lambda: runtime.freshness.newest == last.encode(), "the row whose commit came")
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(runtime.wait_for(last.encode()), 0.5)
            await asyncio.wait_for(runtime.wait_for(last.encode()), LIMIT_SECONDS)
            assert live(memory) == 2
        finally:
            await partner.stop()


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
        await until(lambda: live(memory) == 10, "the partitions of a dead member whose session goes on")
    print(f"partitions of a killed member: {time.monotonic() - begun:.2f} s")


_MEMBER = """
import asyncio, functools, sys
from aiokafka import AIOKafkaConsumer
from cdc.config import Config
from consumers.runtime import Runtime
from tests.memory_store import Memory, MemoryStore
AIOKafkaConsumer.__init__ = functools.partialmethod(AIOKafkaConsumer.__init__, session_timeout_ms=600_000)
config = Config.model_validate_json(sys.argv[1])
asyncio.run(Runtime(config, MemoryStore(Memory()), exclusive=False).run())
"""


@contextlib.contextmanager
def consumer_process(config: Config) -> Iterator[subprocess.Popen[bytes]]:
    """A member of the group that can be killed, and that the group would wait for longer than any test does."""
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
