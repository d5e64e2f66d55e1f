"""From commit to visible: for a reader of committed records, in Redis, and by searching.

Rows are inserted at a steady rate, whatever comes of them, in transactions whose last row is watched. The clock starts
when PostgreSQL has confirmed the commit, and stops when an observer of each kind first sees the row: a consumer of its
own, EXISTS, and a search in which the row's own vector finds it. All processes run on one machine and share its clock.
"""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psycopg
from aiokafka import TopicPartition
from redis.asyncio import Redis

from benchmarks import faiss, source, topic
from benchmarks.bench import Bench, require, timed, wait_for_slot
from benchmarks.children import Child
from benchmarks.measure import Latency, latency
from cdc.config import Config, parse

RATES = (200, 1000)  # rows a second
TRANSACTIONS = 100  # a second
SEARCHED = 10  # every tenth transaction is searched for: more would load the index with looking
LOOK_SECONDS = 0.002  # between two looks into Redis: its resolution
PATIENCE_SECONDS = 60.0
READY_SECONDS = 60.0
WARM_SECONDS = 1  # first commits: connections, code and caches come to life; not counted
STAGED = "public.staged"

_key = msgspec.json.Decoder(dict[str, int]).decode

Times = dict[int, float]  # id of a transaction's last row → monotonic seconds


async def run(bench: Bench) -> list[Latency]:
    """Each rate in a pipeline of its own."""
    found: list[Latency] = []
    for rate in RATES:
        found += await at_rate(bench, rate, bench.size(10, 3))
    return found


async def at_rate(bench: Bench, rate: int, seconds: int) -> list[Latency]:
    """Three latencies."""
    size = rate // TRANSACTIONS
    number = TRANSACTIONS * (seconds + WARM_SECONDS)
    with source.database(bench.endpoints.postgres_dsn) as dsn, source.connect(dsn) as connection:
        source.create_memories(connection)
        source.create_memories(connection, STAGED)
        source.fill_memories(connection, number * size, bench.seed, STAGED)
        settings = bench.settings(
            dsn, source.MEMORIES, postgres={"plugin": bench.endpoints.plugin}, tables=faiss.tables(faiss.COLUMN)
        )
        config = parse(settings)
        searched = [n * size for n in range(SEARCHED, number + 1, SEARCHED)]
        vectors = save_vectors(connection, searched, bench.folder / "vectors.npy")
        with bench.start("reader", settings) as reader:
            wait_for_slot(connection, config.postgres.slot, reader)
            await topic.exists(config, source.MEMORIES, reader.look)
            with bench.start("redis", settings) as redis, bench.start("faiss", settings, str(vectors)) as index:
                index.answer(READY_SECONDS)
                writer = Writer(dsn, number, size)
                with timed(bench.tell, f"latency: {number * size:,} rows at {rate}/s"):
                    seen = await observe(config, writer, (reader, redis, index))
                    hits = found_places(index, searched)
        await clear(config)
    commits = {row: at for row, at in writer.commits.items() if row > TRANSACTIONS * WARM_SECONDS * size}
    require(not writer.late, f"PostgreSQL took fewer than {rate} rows/s: latencies would be flattered")
    places = (("Kafka, read committed", seen[0]), ("Redis", seen[1]), ("search", hits))
    return [
        latency(f"commit → {name}", rate, [at - commits[row] for row, at in times.items() if row in commits])
        for name, times in places
    ]


class Writer(threading.Thread):
    """Moves rows from the staging table, one transaction after the other, each at its time; never catches up in a rush.

    `late` once a commit came more than a second after its time."""

    def __init__(self, dsn: str, number: int, size: int) -> None:
        super().__init__(daemon=True)
        self._dsn, self._number, self._size = dsn, number, size
        self.commits: Times = {}
        self.late = False

    def run(self) -> None:
        """Until all are written."""
        statement = "INSERT INTO public.memories SELECT * FROM public.staged WHERE id > %s AND id <= %s"
        with psycopg.connect(self._dsn, autocommit=True, prepare_threshold=0) as connection:
            started = time.monotonic()
            for number in range(self._number):
                due = started + number / TRANSACTIONS
                time.sleep(max(0.0, due - time.monotonic()))
                last = (number + 1) * self._size
                connection.execute(statement, [last - self._size, last])
                self.commits[last] = time.monotonic()
                self.late |= self.commits[last] > due + 1


def save_vectors(connection: psycopg.Connection, ids: list[int], path: Path) -> Path:
    """The vectors of some rows, in that order, for the process that searches."""
    rows = connection.execute("SELECT embedding FROM public.staged WHERE id = ANY(%s) ORDER BY id", [ids]).fetchall()
    np.save(path, np.array([vector for (vector,) in rows], dtype=np.float32))
    return path


async def observe(config: Config, writer: Writer, children: tuple[Child, ...]) -> tuple[Times, Times]:
    """When the last row of each transaction was seen in Kafka and in Redis."""
    async with topic.committed_reader(config) as consumer:
        name = config.kafka.table_topic(*source.MEMORIES.split("."))
        consumer.assign([TopicPartition(name, number) for number in range(config.kafka.partitions)])
        await consumer.seek_to_end()
        await asyncio.gather(*[consumer.position(partition) for partition in consumer.assignment()])
        writer.start()
        async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as group:
            kafka = group.create_task(in_kafka(consumer, writer))
            redis = group.create_task(in_redis(config, writer, children))
    return kafka.result(), redis.result()


def all_seen(writer: Writer, seen: Times) -> bool:
    return not writer.is_alive() and len(seen) == len(writer.commits)


async def in_kafka(consumer: Any, writer: Writer) -> Times:
    """By a consumer."""
    seen: Times = {}
    while not all_seen(writer, seen):
        for messages in (await consumer.getmany(timeout_ms=100)).values():
            at = time.monotonic()
            seen |= {row: at for message in messages if (row := _key(message.key)["id"]) % writer._size == 0}
    return seen


async def in_redis(config: Config, writer: Writer, children: tuple[Child, ...]) -> Times:
    """By EXISTS of every row that is committed and not seen yet."""
    seen: Times = {}
    async with Redis.from_url(config.redis.url) as server:
        while not all_seen(writer, seen):
            for child in children:
                child.look()
            pending = [row for row in list(writer.commits) if row not in seen]
            if pending:
                pipeline = server.pipeline(transaction=False)
                for row in pending:
                    pipeline.exists(f"memories:{row}")
                there = await pipeline.execute()
                at = time.monotonic()
                seen |= {row: at for row, exists in zip(pending, there, strict=True) if exists}
            await asyncio.sleep(LOOK_SECONDS)
    return seen


def found_places(index: Child, searched: list[int]) -> Times:
    """When each of the rows was found by searching."""
    seen: Times = {}
    while len(seen) < len(searched):
        answer = index.answer(READY_SECONDS)
        seen[searched[answer["place"]]] = answer["seconds"]
    return seen


async def clear(config: Config) -> None:
    """Empties Redis for the next."""
    async with Redis.from_url(config.redis.url) as server:
        await server.flushdb()
