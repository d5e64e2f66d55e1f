"""SIGKILL of a consumer and of a rebuild at each of their failpoints, as real processes.

After a kill: what the store's offsets claim is there, and the group's offsets are not beyond it. A restart makes the
store equal to its topic. A rebuild that dies leaves the store before serving, and the next one works.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis.asyncio as client

from cdc.embedded import Endpoints, Servers
from consumers.letters import read_dead_letters
from consumers.rebuild import rebuild
from tests.chance import seeded
from tests.crash.stores import (
    DIMENSION,
    STABLE,
    Consumer,
    Table,
    assert_complete,
    assert_nothing_ahead,
    becomes_equal,
    consuming,
    database,
    ended,
    equal,
    raw,
    settings,
    table,
)
from tests.pipeline import CommandChild

ROUNDS = int(os.environ.get("CDC_CRASH_ROUNDS", "1"))  # trials a failpoint
AT_ONCE = 5  # trials side by side: a killed member is missed by its group only after 10 s

# Where each is killed, and at which passing at most: a later one is deeper in the work.
CONSUMERS = [
    ("redis", "consumer.polled", 6),
    ("redis", "consumer.applied", 6),
    ("redis", "redis.between-calls", 9),
    ("redis", "consumer.flushed", 6),
    ("redis", "consumer.committed", 6),
    ("faiss", "consumer.polled", 6),
    ("faiss", "consumer.applied", 6),
    ("faiss", "consumer.flushed", 6),
    ("faiss", "consumer.committed", 6),
    ("faiss", "faiss.snapshot-begun", 3),
    ("faiss", "faiss.snapshot-written", 3),
    ("faiss", "faiss.snapshot-renamed", 3),
    ("faiss", "faiss.pointer-written", 1),
]
REBUILDS = [
    ("redis", "rebuild.replaying", 3),
    ("redis", "rebuild.before-swap", 1),
    ("redis", "rebuild.after-swap", 1),
    ("faiss", "rebuild.replaying", 3),
    ("faiss", "faiss.snapshot-begun", 1),
    ("faiss", "faiss.snapshot-written", 1),
    ("faiss", "faiss.snapshot-renamed", 1),
    ("faiss", "rebuild.before-swap", 1),
    ("faiss", "faiss.pointer-written", 1),
    ("faiss", "rebuild.after-swap", 1),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of this module's own: each trial needs two databases."""
    own = Servers(
        tmp_path_factory.mktemp("redis"), only=("redis",), settings={"redis": {"databases": "128"}}, report=print
    )
    try:
        yield own.start().redis_url
    finally:
        own.erase()


async def killed(made: Table, command: tuple[str, str], point: str, hit: int, folder: Path) -> None:
    """Runs the command with changes going on until it kills itself there."""
    environment = {"CDC_FAILPOINTS": f"{point}=kill@{hit}"}
    child = CommandChild(made.data, folder, *command, environment=environment)
    try:
        code = await ended(child, made.change)
    finally:
        child.kill()
    assert code == -signal.SIGKILL, child.log.read_text()
    assert f"failpoint {point}: kill" in child.log.read_text()


async def side_by_side(trials: list[Any]) -> None:
    """All of them, a few at a time."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(trial: Any) -> None:
        async with room:
            await trial

    async with asyncio.TaskGroup() as group:  # the first that fails ends the others
        for trial in trials:
            group.create_task(one(trial))


async def test_a_consumer_killed_anywhere(servers: Endpoints, url: str, tmp_path: Path) -> None:
    chance = seeded()

    async def trial(number: int, kind: str, point: str, most: int) -> None:
        hit, own = chance.randint(1, most), random.Random(chance.random())
        data = settings(servers.kafka_bootstrap, database(url, number), tmp_path)
        async with table(data, own) as made:
            await made.insert(300)
            await killed(made, ("consume", kind), point, hit, tmp_path)
            before = await assert_nothing_ahead(made, kind)
            async with consuming(made.config, kind) as consumer:
                await consumer.caught_up(made)
                assert await equal(made, consumer.store)
            after = await assert_nothing_ahead(made, kind)
            await assert_complete(made, after)
            print(
                f"{kind} {point}@{hit}: {sum(before.values())} offsets were durable, {sum(after.values())} at the end"
            )

    cases = [case for _round in range(ROUNDS) for case in CONSUMERS]
    await side_by_side([trial(number % 64, *case) for number, case in enumerate(cases)])


async def test_a_rebuild_killed_anywhere(servers: Endpoints, url: str, tmp_path: Path) -> None:
    chance = seeded()

    async def trial(number: int, kind: str, point: str, most: int) -> None:
        hit, own = chance.randint(1, most), random.Random(chance.random())
        data = settings(servers.kafka_bootstrap, database(url, number), tmp_path)
        async with table(data, own) as made, consuming(made.config, kind) as consumer:
            await made.insert(300)
            await consumer.caught_up(made)
            async with probing(made, consumer) as probes:
                await killed(made, ("rebuild", kind), point, hit, tmp_path)
                await becomes_equal(made, consumer)
                elsewhere: Any = type(consumer.store)(made.config)
                report = await rebuild(made.config, elsewhere, live=consumer.store)
                await elsewhere.close()
                assert report.swapped
                assert report.live_differences == []
                await made.change()
                await becomes_equal(made, consumer)
            print(f"{kind} rebuild {point}@{hit}: {len(probes)} reads meanwhile, all answered")

    cases = [case for _round in range(ROUNDS) for case in REBUILDS]
    await side_by_side([trial(64 + 2 * (number % 32), *case) for number, case in enumerate(cases)])


@asynccontextmanager
async def probing(made: Table, consumer: Consumer) -> AsyncIterator[list[int]]:
    """Reads stable rows all the while; each must be there. Yields what was read."""
    reads: list[int] = []
    done = asyncio.Event()
    rows = made.texts()

    async def probe() -> None:
        async with client.Redis.from_url(made.config.redis.url) as bare:
            while not done.is_set():
                number = len(reads) % STABLE
                if consumer.store.name == "redis":
                    found = await bare.hgetall(f"memories:{number}")
                    fields = {name.decode(): value for name, value in found.items() if name[:1] != b"_"}
                    assert fields == rows[str(number)]
                else:
                    query = np.frombuffer(raw(made.rows[number]), dtype="<f4").reshape(1, DIMENSION)
                    assert (await consumer.store.search(query, 1))[0][0].key == b'{"id":%d}' % number
                reads.append(number)
                await asyncio.sleep(0.005)

    task = asyncio.ensure_future(probe())
    try:
        yield reads
    finally:
        done.set()
        await task
    assert reads


@pytest.mark.parametrize("kind", ["redis", "faiss"])
async def test_killed_between_a_record_refused_and_its_letter(
    servers: Endpoints, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The store's offsets stay before the record until the letter is written, so that the next start writes it."""
    data = settings(servers.kafka_bootstrap, database(url, 63), tmp_path)
    reached = asyncio.Event()

    async def dies(*_arguments: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    async with table(data, seeded()) as made:
        await made.spoil(3)
        with monkeypatch.context() as patched:
            patched.setattr("consumers.dead_letters.DeadLetters.add", dies)
            consumer = Consumer(made.config, kind)
            await reached.wait()
            await consumer.killed()
        await assert_nothing_ahead(made, kind, refused=False)
        async with consuming(made.config, kind) as again:
            await again.caught_up(made)
        letters = [letter.key async for letter in read_dead_letters(made.config, kind)]
        assert letters == [b'{"id":3}']
        await assert_complete(made, await assert_nothing_ahead(made, kind, refused=True))
