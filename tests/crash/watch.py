"""What is looked at all the while: the slot against progress, and hot rows of Redis, which never become older."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import psycopg
import redis.asyncio as client
from aiokafka.errors import KafkaError
from redis.exceptions import RedisError

from cdc.config import Config
from cdc.errors import ConnectError
from tests.crash.invariants import Key, never_older, slot_behind
from tests.crash.witness import Witness
from tests.crash.workload import HOT

SLOT_SECONDS = 0.1
VISIBLE_SECONDS = 30.0
ROWS_SECONDS = 0.02


class Watch:
    """Two loops. `samples` counts what was looked at. Servers that are away are waited for; a Violation ends a loop."""

    def __init__(self, config: Config, witness: Witness) -> None:
        self._config, self._witness = config, witness
        self._positions: dict[Key, bytes] = {}
        self.slot_paused = False  # while the slot is being made anew
        self.rows_paused = False  # while a store that lost its data, or a swapped one, catches up
        self.samples = {"slot": 0, "slot, commit not visible yet": 0, "rows": 0}

    async def slot(self) -> None:
        """For ever. Raises Violation."""
        await _for_ever(self._slots)

    async def rows(self) -> None:
        """For ever. Raises Violation."""
        await _for_ever(self._rows)

    async def _slots(self) -> None:
        query = "SELECT (confirmed_flush_lsn - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = %s"
        async with await psycopg.AsyncConnection.connect(self._config.postgres.dsn, autocommit=True) as connection:
            while True:
                row = await (await connection.execute(query, [self._config.postgres.slot])).fetchone()
                if row is not None and not self.slot_paused:
                    await self._compare(row[0])
                await asyncio.sleep(SLOT_SECONDS)

    async def _compare(self, confirmed: int) -> None:
        """A commit that Kafka has decided and answered becomes visible a little later: a broker that is killed in
        between writes its marks once it has started and read its own log. It has to become visible, whatever the reader
        does. (One that confirms too early is also found when it is killed before the commit: the next finds the slot
        ahead of progress, and refuses.)"""
        deadline = time.monotonic() + VISIBLE_SECONDS
        while (progress := await self._witness.current_progress()) is not None and not self.slot_paused:
            if confirmed <= progress.end_lsn or time.monotonic() > deadline:
                slot_behind(confirmed, progress.end_lsn)
                self.samples["slot"] += 1
                return
            self.samples["slot, commit not visible yet"] += 1
            await asyncio.sleep(SLOT_SECONDS / 10)

    async def _rows(self) -> None:
        async with client.Redis.from_url(self._config.redis.url) as link:
            while True:
                pipe = link.pipeline(transaction=False)
                for number in range(HOT):
                    pipe.hget(f"memories:{number}", "_pos")
                for number, position in enumerate(await pipe.execute()):
                    self._look(Key("memories", str(number)), position)
                await asyncio.sleep(ROWS_SECONDS)

    def _look(self, key: Key, position: bytes | None) -> None:
        if self.rows_paused:
            self._positions.clear()
        elif position is not None:
            never_older(key, self._positions.get(key, b""), position)
            self._positions[key] = position
            self.samples["rows"] += 1


async def _for_ever(work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
        except (psycopg.OperationalError, RedisError, KafkaError, ConnectError, OSError):
            await asyncio.sleep(0.2)  # a server is away; whether it may be, the schedule knows
