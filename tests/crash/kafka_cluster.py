"""Kafka of our own to kill, a session that writes all the while, and a consumer that sees every record as it comes."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
from aiokafka import TopicPartition

from cdc.config import Config
from cdc.embedded import Endpoints, Servers
from cdc.kafka.offsets import open_consumer
from tests.comparison import Record, table_dump
from tests.pipeline import DIMENSION, Running, source
from tests.waiting import until

PROMISE_SECONDS = 60.0  # progress within a minute of the brokers' return


@contextmanager
def brokers(folder: Path, count: int, **settings: str) -> Iterator[Servers]:
    """A Kafka of `count` nodes, killed at the end: nobody needs what it holds. `settings` with _ for each dot."""
    named = {name.replace("_", "."): value for name, value in settings.items()}
    own = Servers(folder, only=("kafka",), brokers=count, settings={"kafka": named}, report=print)
    try:
        own.start()
        yield own
    finally:
        for name in names(count):
            own[name].kill()
        own.erase()


def names(count: int) -> list[str]:
    """Of the nodes in `Servers`."""
    return ["kafka", *(f"kafka-{number}" for number in range(2, count + 1))]


def with_kafka(servers: Endpoints, own: Servers, count: int) -> Endpoints:
    """The session's PostgreSQL and Redis beside our own Kafka."""
    bootstrap = ",".join(own[name].bootstrap for name in names(count))  # type: ignore[attr-defined] # Kafka's
    return dataclasses.replace(servers, kafka_bootstrap=bootstrap)


class Workload:
    """One session that inserts, updates and deletes without a pause, until `stop`."""

    def __init__(self, config: Config, chance: random.Random, rows: int = 200) -> None:
        self._config, self._chance, self._rows = config, chance, rows
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self.transactions = 0
        self.error: psycopg.Error | None = None

    def _work(self) -> None:
        try:
            with source(self._config) as connection:
                while not self._done.wait(0.004):
                    with connection.transaction():
                        for _ in range(self._chance.randint(1, 5)):
                            connection.execute(*self._statement())
                    self.transactions += 1
        except psycopg.Error as error:  # told by `stop`
            self.error = error

    def _statement(self) -> tuple[str, list[Any]]:
        row = self._chance.randrange(self._rows)
        if self._chance.random() < 0.2:
            return "DELETE FROM memories WHERE id = %s", [row]
        values = [row, self._chance.randbytes(8).hex(), [self._chance.gauss(0, 1) for _ in range(DIMENSION)]]
        return (
            "INSERT INTO memories (id, content, embedding) VALUES (%s, %s, %s) ON CONFLICT (id) DO UPDATE"
            " SET content = excluded.content, embedding = excluded.embedding",
            values,
        )

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Raises what ended it early."""
        self._done.set()
        self._thread.join()
        if self.error is not None:
            raise self.error


@contextmanager
def writing(config: Config, chance: random.Random) -> Iterator[Workload]:
    """A workload that runs inside."""
    workload = Workload(config, chance)
    workload.start()
    try:
        yield workload
    finally:
        workload.stop()


class Witness:
    """A read_committed consumer of a table's topic, from its beginning, that never starts again."""

    def __init__(self, consumer: Any, config: Config) -> None:
        self._consumer = consumer
        self._config = config
        self.records: list[Record] = []
        self._places = [
            TopicPartition(config.kafka.table_topic("public", "memories"), n) for n in range(config.kafka.partitions)
        ]

    async def read(self) -> None:
        """For ever."""
        self._consumer.assign(self._places)
        while True:
            for place, messages in (await self._consumer.getmany(timeout_ms=100)).items():
                self.records += [Record(place.partition, m.offset, m.key, m.value, dict(m.headers)) for m in messages]

    def by_partition(self) -> list[Record]:
        """In the order in which they came, partition by partition."""
        return sorted(self.records, key=lambda record: record.partition)


@asynccontextmanager
async def witness(config: Config) -> AsyncIterator[Witness]:
    """Raises what its reading raised."""
    async with open_consumer(config.kafka) as consumer:
        made = Witness(consumer, config)
        task = asyncio.ensure_future(made.read())
        try:
            yield made
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if not task.cancelled():
                task.result()


async def progress_again(running: Running) -> float:
    """Waits until both stores have what is committed now; the seconds that took, which a promise bounds."""
    begun = time.monotonic()
    await running.caught_up(PROMISE_SECONDS)
    return time.monotonic() - begun


async def assert_seen_once(config: Config, seen: Witness) -> list[Record]:
    """The witness saw exactly what the topic holds, each record once and in its order."""
    records = await table_dump(config)
    await until(lambda: len(seen.records) >= len(records), f"all of {len(records)} records seen", PROMISE_SECONDS)
    assert seen.by_partition() == records, f"{len(seen.records)} seen, {len(records)} there"
    return records
