"""Searching while the index is written: how long a search takes then, against the idle index of the same process.

A client in the consumer's process searches at a fixed rate, each search at its time whatever became of those before, so
that a blocked event loop counts. Vectors change hands between the rows: by a steady stream, and by a backlog that one
transaction puts before the consumer at once, which it then applies as fast as it can. Progress is that of the store's
own offsets.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from aiokafka import AIOKafkaProducer

from benchmarks import faiss
from benchmarks.bench import Bench, require
from benchmarks.children import Child
from benchmarks.measure import Comparison, Latency, Sample, latency, rate
from benchmarks.redis import read_batches
from cdc.config import Config
from cdc.envelope import POSITION_HEADER, VERSION_HEADER
from consumers.store import Record

AIM = 0.5  # the slowest of a hundred searches may take twice as long as when nothing is written
STEADY = 1000  # upserts a second
TICKS = 50  # a second, in which the steady stream is sent
READY_SECONDS = 300.0
LINE_SECONDS = 60.0
EPOCH_DIGITS = 8  # of a position
TRANSACTION_MS = 600_000  # the backlog waits uncommitted while the index is idle
BATCH_BYTES = 1 << 20


class Search(NamedTuple):
    """One search: when it was due, how long after that its answer came (seconds), the sum of the store's offsets."""

    due: float
    seconds: float
    applied: int


async def run(bench: Bench) -> list[Comparison]:
    """Idle, steady, idle, backlog."""
    rows, seconds = bench.size(100_000, 20_000), bench.size(20, 4)
    number = bench.size(4, 2) * rows  # of the backlog
    async with faiss.filled(bench, "search", rows) as table:
        path = bench.folder / "queries.npy"
        np.save(path, table.vectors)
        updates = exchanged([record for batch in await read_batches(table.config) for record in batch.records])
        with bench.start("searched", table.settings, str(path), str(rows)) as child:
            child.answer(READY_SECONDS)
            first = idle(child, seconds)
            steady = await steadily(table.config, child, updates, seconds)
            async with backlog(table.config, updates, number) as commit:
                again = idle(child, seconds)
                await commit()
                pressed, upserts = backlogged(child, again[-1].applied, number)
    return report(bench, (summary(first), summary(again)), steady, pressed, upserts)


def report(
    bench: Bench, still: tuple[Latency, Latency], steady: Latency, pressed: Latency, upserts: float
) -> list[Comparison]:
    """As rates, so that more is better: what the 99th of a hundred searches allows in a second."""
    bounds = (1000 / still[0].p99, 1000 / still[1].p99)
    found = []
    for name, busy in ((f"search at {STEADY} upserts/s", steady), (f"search at {upserts:,.0f} upserts/s", pressed)):
        bench.tell(f"{name}: p50 {busy.p50:.1f}, p99 {busy.p99:.1f} ms; idle {still[0].p99:.1f}, {still[1].p99:.1f} ms")
        details = {"p50_ms": busy.p50, "p99_ms": busy.p99, "idle_p50_ms": still[0].p50, "idle_p99_ms": still[0].p99}
        details["samples"] = busy.samples
        found.append(Comparison(name, "the idle index", "1/p99 a second", 1000 / busy.p99, bounds, AIM, details))
    return found


def exchanged(records: Sequence[Record]) -> Iterator[Record]:
    """The records without end, newer each round, each with the vector of another row; nobody looks at other columns."""
    size, turn = len(records), 0
    while True:
        turn += 1
        for number, record in enumerate(records):
            position = b"%08x" % (int(record.position[:EPOCH_DIGITS], 16) + turn) + record.position[EPOCH_DIGITS:]
            yield record._replace(position=position, value=records[(number + turn) % size].value)


def idle(child: Child, seconds: float) -> list[Search]:
    """Searches while nothing is written."""
    started = time.monotonic()
    return list(searches(child, started, started + seconds))


async def steadily(config: Config, child: Child, updates: Iterator[Record], seconds: float) -> Latency:
    """Searches while a stream of upserts goes in."""
    async with producing(config) as producer:
        started = time.monotonic()
        for tick in range(int(seconds * TICKS)):
            await asyncio.sleep(max(0.0, started + tick / TICKS - time.monotonic()))
            await send(producer, config, islice(updates, STEADY // TICKS))
        ended = time.monotonic()
    found = list(searches(child, started, ended))
    require(found[-1].applied > found[0].applied, "nothing was written while it was searched")
    return summary(found)


@asynccontextmanager
async def backlog(config: Config, updates: Iterator[Record], number: int) -> AsyncIterator[Any]:
    """Upserts that nobody sees until the function it yields is called."""
    options = {"transactional_id": f"{config.kafka.prefix}-backlog", "transaction_timeout_ms": TRANSACTION_MS}
    async with producing(config, **options) as producer:
        await producer.begin_transaction()
        await send(producer, config, islice(updates, number))
        await producer.flush()
        yield producer.commit_transaction


def backlogged(child: Child, before: int, number: int) -> tuple[Latency, float]:
    """Searches while a backlog is applied, until the offsets are so many past `before`, and the upserts a second."""
    found: list[Search] = []
    started = time.monotonic()
    for search in searches(child, started, started + READY_SECONDS):
        found.append(search)
        if search.applied - before >= number:
            break
    require(bool(found) and found[-1].applied - before >= number, "the backlog was not applied")
    return summary(found), rate([Sample(search.due + search.seconds, search.applied) for search in found])


@asynccontextmanager
async def producing(config: Config, **options: Any) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(**config.kafka.client_options(), max_batch_size=BATCH_BYTES, **options)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def send(producer: AIOKafkaProducer, config: Config, records: Iterator[Record]) -> None:
    """Each into its own partition, as our reader would write it."""
    topic = config.kafka.table_topic(*config.faiss.table.split("."))
    for record in records:
        headers = [(POSITION_HEADER, record.position), (VERSION_HEADER, record.vector)]
        await producer.send(topic, record.value, record.key, record.partition, headers=headers)


def searches(child: Child, started: float, ended: float) -> Iterator[Search]:
    """Those that were due between two moments (monotonic seconds)."""
    while (search := Search(**child.answer(LINE_SECONDS))).due < ended:
        if search.due >= started:
            yield search


def summary(found: Sequence[Search]) -> Latency:
    """In milliseconds."""
    require(len(found) > 1, "hardly any search was answered")
    return latency("search", len(found), [search.seconds for search in found])
