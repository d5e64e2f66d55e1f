"""Redis that loses, refuses or is somebody else's: noticed by itself within a minute, refilled, equal.

Changes go on all the while. From the moment the consumer knows of the loss until the store holds again what it held,
`cdc_store_up` is 0; it never says 1 over a store that is not complete.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from prometheus_client import REGISTRY

from cdc.embedded import Endpoints
from cdc.embedded.folder import HOST
from cdc.metrics import STORE_UP
from consumers.rebuild import rebuild
from consumers.redis import RedisStore
from consumers.verify import compare
from tests.chance import seeded
from tests.crash.proxy import Proxy
from tests.crash.redis_server import RedisServer
from tests.crash.stores import (
    NAME,
    STABLE,
    TABLE,
    Consumer,
    Table,
    becomes_equal,
    consuming,
    settings,
    table,
)
from tests.waiting import until

NOTICED_SECONDS = 60  # the promise
ROWS = 1000
STABLE_KEYS = [f"memories:{number}" for number in range(STABLE)]


@dataclass
class World:
    """A consumer that has caught up, its server behind a proxy, and what was seen of both."""

    server: RedisServer
    proxy: Proxy
    made: Table
    consumer: Consumer
    folder: Path
    seen: list[tuple[float, bool, bool | None]] = field(default_factory=list)  # when, up, complete (None: no answer)
    mark: int = 0  # where a fault began in it

    @property
    def up(self) -> bool:
        return REGISTRY.get_sample_value("cdc_store_up", {"store": "redis"}) == 1

    async def watch(self) -> None:
        """Looks every few milliseconds, as a reader would: by the address of the config. A look counts from its begin:
        a store that was up then is complete from then on."""
        with redis.Redis.from_url(self.made.config.redis.url, socket_timeout=0.2, socket_connect_timeout=0.2) as client:
            while True:
                begun, up = time.monotonic(), self.up
                try:
                    complete: bool | None = await asyncio.to_thread(client.exists, *STABLE_KEYS) == STABLE
                except redis.RedisError:
                    complete = None
                self.seen.append((begun, up, complete))
                await asyncio.sleep(0.01)

    async def write(self, stop: asyncio.Event) -> None:
        """Changes until told to stop: one cut in the middle would be in the topic and not in the oracle, or not."""
        while not stop.is_set():
            await self.made.change()
            await asyncio.sleep(0.02)

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """Writes and looks meanwhile; what one of them raised is raised. What the consumer says is noted as it does:
        between two looks it may be down and up again."""
        stop, gauge = asyncio.Event(), STORE_UP.labels("redis")
        say = gauge.set

        def noting(answers: float) -> None:
            say(answers)
            self.seen.append((time.monotonic(), answers == 1, None))

        writing, watching = asyncio.ensure_future(self.write(stop)), asyncio.ensure_future(self.watch())
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(gauge, "set", noting)
                await until(lambda: any(complete for _at, _up, complete in self.seen), "the first look")
                yield
        finally:
            stop.set()
            await asyncio.wait({writing})
            watching.cancel()
            await asyncio.wait({watching})
        writing.result()
        assert watching.cancelled()

    async def down(self) -> None:
        """Waits until the consumer has said, since `mark`, that the store is not up."""
        await until(lambda: any(not up for _at, up, _complete in self.seen[self.mark :]), "a store that is not up")

    def assert_honest(self, since: float) -> float | None:
        """Never up and incomplete once the loss is known; seconds until it was known, None when nothing was lost."""
        after = [each for each in self.seen if each[0] >= since]
        if not any(complete is False for _at, _up, complete in after):
            return None
        known = min((at for at, up, _complete in after if not up), default=None)
        assert known is not None, "rows were missing and nothing said so"
        wrong = [each for each in after if each[0] > known and each[1] and each[2] is False]
        assert not wrong, f"up over an incomplete store at {wrong[0][0] - known:.3f} s"
        return known - since


@pytest.fixture
async def world(servers: Endpoints, tmp_path: Path) -> AsyncIterator[World]:
    server = RedisServer(tmp_path / "primary")
    with Proxy(HOST, server.port) as proxy:
        try:
            await server.start()
            data = settings(servers.kafka_bootstrap, f"redis://{proxy.address}/0", tmp_path)
            async with table(data, seeded()) as made:
                await made.insert(ROWS)
                async with consuming(made.config, "redis") as consumer:
                    await becomes_equal(made, consumer)
                    yield World(server, proxy, made, consumer, tmp_path)
        finally:
            server.close()


async def flushed(world: World) -> None:
    world.server.client.flushall()


async def restarted_empty(world: World) -> None:
    world.server.kill()
    await world.server.start()


async def restarted_with_an_older_copy(world: World) -> None:
    await asyncio.to_thread(world.server.client.save)
    await more(world)
    world.server.kill()
    await world.server.start()


async def restarted_loading_slowly(world: World) -> None:
    """-LOADING for about two seconds."""
    await asyncio.to_thread(world.server.client.save)
    await more(world)
    world.server.kill()
    slow = {"key_load_delay": "1000", "loading_process_events_interval_bytes": "1024"}  # µs a key
    await world.server.start(wait=False, **slow)
    await world.down()


async def failed_over(world: World) -> None:
    """A replica whose line swallowed the last writes is promoted when the primary dies, and gets its address."""
    replica = RedisServer(world.folder / "replica")
    try:
        with Proxy(HOST, world.server.port) as line:
            await replica.start()
            replica.client.replicaof(HOST, line.port)
            await until(lambda: replica.client.info("replication")["master_link_status"] == "up", "a replica")
            await more(world)
            line.black_hole()
            await more(world)
            assert replica.client.hgetall("cdc:state") != world.server.client.hgetall("cdc:state")
            world.server.kill()
            replica.client.replicaof("NO", "ONE")
        world.server.client.close()
        world.server.client, world.server._process = replica.client, replica._process
        world.proxy.target = (HOST, replica.port)
    except BaseException:
        replica.close()
        raise


async def swapped_for_an_empty_one(world: World) -> None:
    world.server.client.swapdb(0, 9)


async def swapped_and_swapped_back(world: World) -> None:
    """In between the consumer begins anew in the other database."""
    world.server.client.swapdb(0, 9)
    await world.down()
    await until(lambda: world.up, "the other database filled")
    world.mark = len(world.seen)
    world.server.client.swapdb(0, 9)
    await world.down()


async def without_its_sentinel(world: World) -> None:
    world.server.client.delete("cdc:state")


async def scripts_flushed(world: World) -> None:
    world.server.client.script_flush()


async def read_only(world: World) -> None:
    world.server.client.replicaof(HOST, 1)
    await world.down()
    world.server.client.replicaof("NO", "ONE")


async def out_of_memory(world: World) -> None:
    world.server.client.config_set("maxmemory", "1")
    await world.down()
    world.server.client.config_set("maxmemory", "0")


async def blocked_by_a_script(world: World) -> None:
    """Somebody's endless script: -BUSY for all others."""
    world.server.client.config_set("busy-reply-threshold", "50")

    def endless() -> None:
        with redis.Redis(HOST, world.server.port) as other, pytest.raises(redis.ResponseError, match="killed"):
            other.eval("while true do end", 0)

    thread = threading.Thread(target=endless)
    thread.start()
    try:
        await world.down()
    finally:
        world.server.client.script_kill()
        thread.join()


async def more(world: World) -> None:
    """Waits until writes of later than now are applied."""
    ends = await world.made.ends()
    reached = world.consumer.runtime.partitions.reached
    assert reached, ends
    await until(lambda: any(reached.get(place, 0) > end for place, end in ends.items()), "what was written since")


LOSING = [
    flushed, restarted_empty, restarted_with_an_older_copy, restarted_loading_slowly, failed_over,
    swapped_for_an_empty_one, swapped_and_swapped_back, without_its_sentinel,
]  # fmt: skip
REFUSING = [scripts_flushed, read_only, out_of_memory, blocked_by_a_script]


@pytest.mark.parametrize("fault", [*LOSING, *REFUSING], ids=lambda fault: fault.__name__)
async def test_a_fault_is_noticed_and_mended(world: World, fault: Callable[[World], Awaitable[None]]) -> None:
    async with world.busy():
        began, world.mark = time.monotonic(), len(world.seen)
        await fault(world)
        done = time.monotonic()
        if fault in LOSING:
            await world.down()
        await until(lambda: world.up, "a store that is up", NOTICED_SECONDS)
        mended = time.monotonic()
    await becomes_equal(world.made, world.consumer)
    known = world.assert_honest(began)
    noticed = "rows were never missing" if known is None else f"noticed {known:.2f} s after it began"
    print(f"{fault.__name__}: {noticed}, up again {mended - done:.2f} s after it ended")


async def test_an_idle_store_is_looked_after_too(world: World) -> None:
    """No record comes: the check finds it."""
    world.server.client.flushall()
    began = time.monotonic()
    await until(lambda: not world.up, "noticed")
    noticed = time.monotonic() - began
    await becomes_equal(world.made, world.consumer)
    await until(lambda: world.up, "up again")
    print(
        f"idle and flushed: noticed after {noticed:.2f} s (looked at every {world.made.config.redis.check_seconds} s)"
    )


class Oracle:
    """The rows that were written, as `verify` reads PostgreSQL."""

    def __init__(self, made: Table) -> None:
        self._rows = {b'{"id":%d}' % number: row for number, row in made.rows.items()}

    async def position(self) -> bytes:
        return b""

    async def rows(self) -> AsyncIterator[Sequence[tuple[bytes, Any]]]:
        yield list(self._rows.items())

    async def look(self, keys: Sequence[bytes]) -> Sequence[Any]:
        return [self._rows.get(key) for key in keys]


async def test_single_keys_are_not_missed_by_the_sentinel_but_by_the_count_and_verify(world: World) -> None:
    """Deleted by hand or evicted: nothing tells of it but the number of rows, an alert's input; `verify` names them."""
    made, client = world.made, world.server.client
    gone = [number for number in made.rows if number % 97 == 5]
    assert client.delete(*(f"memories:{number}" for number in gone)) == len(gone)

    def counted() -> bool:
        return REGISTRY.get_sample_value("cdc_store_rows", {"store": "redis", "table": TABLE}) == len(made.rows) - len(
            gone
        )

    await until(counted, "fewer rows in the metric")
    assert world.up

    async def caught_up(_position: bytes) -> None:
        return None

    found = await compare(world.consumer.store, Oracle(made), NAME, caught_up)
    assert sorted(found.missing) == sorted(b'{"id":%d}' % number for number in gone)
    assert (found.extra, found.stale, found.unsettled) == ([], [], [])
    elsewhere = RedisStore(made.config)
    report = await rebuild(made.config, elsewhere, live=world.consumer.store)
    await elsewhere.close()
    assert sorted(difference.key for difference in report.live_differences) == sorted(found.missing)
    await becomes_equal(made, world.consumer)
