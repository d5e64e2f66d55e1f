"""A pipeline by way of the proxies, hands and eyes beside them, and what is looked at while a server is away."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from psycopg.rows import dict_row

from cdc.config import Config
from cdc.metrics import READER_RETRIES
from tests.comparison import assert_equal_everywhere, assert_in_order
from tests.crash.network import Network
from tests.crash.proxy import Proxy
from tests.pipeline import Running, pipeline, source
from tests.waiting import until

VECTOR = 8  # dimensions
FRESH_SECONDS = 5.0  # heartbeats come every 0.2 s
_SLOT = """
SELECT s.active, (s.confirmed_flush_lsn - '0/0')::bigint AS confirmed, r.reply_time
FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid WHERE slot_name = %s
"""


class Pipeline:
    """A running pipeline whose network breaks; `beside` is its config around the proxies."""

    def __init__(self, running: Running, beside: Config) -> None:
        self.running, self.beside = running, beside
        self._ids = itertools.count(1)

    async def write(self, rows: int = 20, size: int = 100) -> None:
        """Transactions of an insert (`size` random bytes in hex), an update and a delete, straight to PostgreSQL."""
        await asyncio.to_thread(self._write, rows, size)

    def _write(self, rows: int, size: int) -> None:
        insert = "INSERT INTO memories (id, who, content, embedding) VALUES (%s, 'w', %s, %s)"
        with source(self.beside) as connection:
            for number in itertools.islice(self._ids, rows):
                with connection.transaction():
                    vector = [float(number + i) for i in range(VECTOR)]
                    connection.execute(insert, [number, os.urandom(size).hex(), vector])
                    connection.execute("UPDATE memories SET score = id WHERE id = %s", [number - 1])
                    connection.execute("DELETE FROM memories WHERE id = %s AND id %% 3 = 0", [number - 7])

    def slot(self) -> dict[str, Any]:
        """`active`, `confirmed` (LSN as a number), `reply_time` of the walsender's last word from us."""
        with source(self.beside) as connection, connection.cursor(row_factory=dict_row) as cursor:
            found = cursor.execute(_SLOT, [self.beside.postgres.slot]).fetchone()
        assert found is not None
        return found

    def retries(self) -> float:
        """How often the reader had to wait for a server."""
        return retries(self.beside)

    def age(self, store: str) -> float:
        """Seconds the store lags."""
        return self.running.consumers[store].freshness.age() or 0.0

    async def whole(self, what: str) -> None:
        """Caught up, fresh, equal everywhere, nothing twice; how long that took is printed."""
        begun = time.monotonic()
        await self.write(5)
        await self.running.caught_up()
        await until(lambda: max(self.age("redis"), self.age("faiss")) < FRESH_SECONDS, "fresh again")
        print(f"{what}: caught up {time.monotonic() - begun:.1f} s after healing")
        assert_in_order(await assert_equal_everywhere(self.running))


def retries(config: Config) -> float:
    """How often the reader had to wait for a server."""
    samples = [sample for metric in READER_RETRIES.collect() for sample in metric.samples]
    name = config.source_name
    return sum(s.value for s in samples if s.name.endswith("_total") and name in s.labels.values())


@asynccontextmanager
async def whole(network: Network, config: Config) -> AsyncIterator[Pipeline]:
    """Running and caught up; healed at the end whatever happens."""
    try:
        async with pipeline(config) as running:
            made = Pipeline(running, network.beside(config))
            await made.write()
            await running.caught_up()
            try:
                yield made
            finally:
                network.heal()
    finally:
        network.heal()


async def outage(own: Pipeline, proxy: Proxy, what: str, over: Callable[[], bool], seconds: float) -> int:
    """Writes, and watches until it is `over` and at least `seconds` have passed: the slot never says more than progress
    holds. Returns the connections opened meanwhile, and prints them a second."""
    opened, begun = proxy.opened, time.monotonic()
    await own.write()

    async def passed() -> bool:
        slot = await asyncio.to_thread(own.slot)
        progress = own.running.source.reader.progress
        assert progress is not None
        assert slot["confirmed"] <= progress.end_lsn
        return over() and time.monotonic() - begun >= seconds

    await until(passed, what)
    elapsed, count = time.monotonic() - begun, proxy.opened - opened
    lag = max(own.age("redis"), own.age("faiss"))
    print(f"{what}: away {elapsed:.1f} s, {count} connections opened, lag {lag:.1f} s")
    return count
