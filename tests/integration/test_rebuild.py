"""Rebuilding by replay on a real Kafka: while writes go on, from damage, with roll-back, never with a wrong result."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

from cdc.config import Config
from cdc.errors import ConnectError, StoreError
from consumers.rebuild import Progress, Since, rebuild, refill, rollback
from consumers.runtime import Runtime
from consumers.store import Applied, Batch, Offsets, Store
from tests.memory_store import Contents, Memory, MemoryStore, live, rows
from tests.topic_writer import TopicWriter
from tests.waiting import until

TABLE = "public.memories"
NAME = ("public", "memories")


@pytest.fixture
async def topics(topics: TopicWriter) -> TopicWriter:
    """60 rows of which 10 were deleted and 10 updated, and a truncate before all of it."""
    await topics.put(TABLE, rows(range(5)))
    await topics.truncate(TABLE)
    await topics.put(TABLE, rows(range(60)))
    await topics.delete(TABLE, range(10))
    await topics.put(TABLE, rows(range(10, 20), "new"), op="u")
    return topics


async def test_from_nothing(config: Config, topics: TopicWriter) -> None:
    memory = Memory()
    seen: list[Progress] = []
    store = MemoryStore(memory)
    report = await rebuild(config, store, live=store, on_progress=seen.append)
    assert report.swapped
    assert live(memory) == 50
    assert report.counts == {TABLE: (50, 50, 0)}
    assert len(report.live_differences) == 50  # the live store was empty, which did not hinder
    assert [progress.phase for progress in seen][-2:] == ["verify", "swap"]
    assert seen[-1].done == seen[-1].total
    assert await store.open() == memory.live.offsets  # a consumer goes on from here


async def test_writes_go_on_and_nothing_is_lost(config: Config, topics: TopicWriter) -> None:
    memory = Memory()
    store = MemoryStore(memory)
    consumer = Runtime(config, store, exclusive=True, check_seconds=0.05)
    consuming = asyncio.ensure_future(consumer.run())
    stop = asyncio.Event()

    async def write() -> int:
        for number in itertools.count(1000, 10):
            await topics.put(TABLE, rows(range(number, number + 10)))
            if stop.is_set():
                return number + 10 - 1000
        raise AssertionError

    writing = asyncio.ensure_future(write())
    await until(lambda: live(memory) > 60, "the live store")
    before = memory.live
    report = await rebuild(config, MemoryStore(memory), live=MemoryStore(memory))
    assert report.live_differences == []
    stop.set()
    written = await writing
    await until(lambda: live(memory) == 50 + written, "the consumer goes on in the new store")
    assert memory.live is not before
    consumer.stop()
    await consuming


async def test_rollback(config: Config, topics: TopicWriter) -> None:
    memory = Memory()
    before = memory.live
    before.rows[NAME] = {b'{"id":1}': (b"0" * 32, b"{}", b"{}")}
    await rebuild(config, MemoryStore(memory))
    assert live(memory) == 50
    await rollback(MemoryStore(memory))
    assert memory.live is before
    with pytest.raises(StoreError, match="roll back"):
        await rollback(MemoryStore(memory))


async def test_the_live_store_is_compared(config: Config, topics: TopicWriter) -> None:
    memory = Memory()
    await rebuild(config, MemoryStore(memory))
    held = memory.live.rows[NAME]
    del held[b'{"id":15}']
    held[b'{"id":16}'] = (b"0" * 32, b"{}", b"{}")
    held[b'{"id":500}'] = (b"0" * 32, b"{}", b"{}")
    report = await rebuild(config, MemoryStore(memory), live=MemoryStore(memory))
    found = {(difference.key, difference.kind) for difference in report.live_differences}
    assert found == {(b'{"id":15}', "missing"), (b'{"id":16}', "stale"), (b'{"id":500}', "extra")}


class Forgetful(MemoryStore):
    """A shadow that drops one record."""

    async def shadow(self) -> Store:
        self._shadow = Contents()
        return _Dropping(self._memory, self.name, self._shadow)


class _Dropping(MemoryStore):
    async def apply(self, batch: Batch) -> Applied:
        done = await super().apply(batch)
        self._reachable().rows[NAME].pop(b'{"id":33}', None)
        return done


async def test_a_wrong_result_is_never_swapped_in(config: Config, topics: TopicWriter) -> None:
    memory = Memory()
    before = memory.live
    with pytest.raises(StoreError, match=r'missing: \{"id":33\}; nothing was swapped'):
        await rebuild(config, Forgetful(memory))
    assert memory.live is before


async def test_refused_records_do_not_stop_a_rebuild(config: Config, topics: TopicWriter) -> None:
    await topics.put(TABLE, [{"id": 99, "text": "poison"}])
    report = await rebuild(config, MemoryStore(Memory()))
    assert report.rejected == {"poison": 1}
    assert report.counts == {TABLE: (50, 51, None)}


async def test_a_part_is_replayed_into_the_live_store(config: Config, topics: TopicWriter) -> None:
    memory = Memory()
    await rebuild(config, MemoryStore(memory))
    since = time.time_ns() // 1_000_000
    await topics.put(TABLE, rows(range(200, 210)))
    await refill(config, MemoryStore(memory), Since(time_ms=since))
    assert live(memory) == 60
    del memory.live.rows[NAME][b'{"id":205}'], memory.live.rows[NAME][b'{"id":30}']
    report = await refill(config, MemoryStore(memory), Since(time_ms=since))
    assert report.records == 10
    assert live(memory) == 59  # one came back, the other lies before the part
    await refill(config, MemoryStore(memory), Since(offset=0))
    assert live(memory) == 60


async def test_a_part_never_jumps_over_what_the_store_has_not_seen(config: Config, topics: TopicWriter) -> None:
    memory = Memory()
    await refill(config, MemoryStore(memory), Since(time_ms=time.time_ns() // 1_000_000 + 60_000))
    assert live(memory) == 50


class Failing(MemoryStore):
    """A shadow that cannot be made durable."""

    async def shadow(self) -> Store:
        self._shadow = Contents()
        return _Full(self._memory, self.name, self._shadow)


class _Full(MemoryStore):
    _tried = False

    async def flush(self, *, force: bool = False) -> Offsets:
        if not self._tried:  # beside the verifying, and later there would be room again
            self._tried = True
            raise ConnectError("the disk is full", hint="make room")
        return await super().flush(force=force)


async def test_what_is_not_durable_is_not_swapped_in(config: Config, topics: TopicWriter) -> None:
    memory = Memory()
    before = memory.live
    with pytest.raises(ConnectError, match="the disk is full"):
        await rebuild(config, Failing(memory))
    assert memory.live is before
