"""The FAISS consumer and a rebuild by replay, each a process of its own, against a bare loop over the same records.

The bare loop fetches with aiokafka and decodes the vectors, and does nothing with them. What counts for ours is the
number of vectors in the index; at the end rows drawn from PostgreSQL must be found by searching.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import numpy as np
import psycopg

from benchmarks import source
from benchmarks.bench import Bench, fill_topic, require, timed
from benchmarks.children import Child
from benchmarks.measure import Comparison, Sample, rate
from cdc.config import Config
from consumers.faiss.arrays import Vectors
from consumers.faiss.store import FaissStore

AIM = 0.5
AIM_TRAINED = 0.9
LINE_SECONDS = 120.0  # until the index says something new
CHECKED = 100  # rows searched for at the end
COLUMN = "embedding"
OURS = 0.999  # cosine similarity of a vector with itself, after rounding; random ones are near 0


class Filled(NamedTuple):
    """A table of vectors that is in its topic: how programs under test are configured, and rows to search for."""

    rows: int
    settings: dict[str, Any]
    config: Config
    keys: list[bytes]
    vectors: Vectors


@asynccontextmanager
async def filled(bench: Bench, name: str, rows: int, **sections: dict[str, Any]) -> AsyncIterator[Filled]:
    """Makes the rows and puts them into Kafka; `sections` go over the configuration."""
    with source.database(bench.endpoints.postgres_dsn) as dsn, source.connect(dsn) as connection:
        source.create_memories(connection)
        with timed(bench.tell, f"{name}: {rows:,} vectors made"):
            source.fill_memories(connection, rows, bench.seed)
        sections |= {"postgres": {"plugin": bench.endpoints.plugin}, "tables": {source.MEMORIES: {"vector": COLUMN}}}
        settings = bench.settings(dsn, source.MEMORIES, **sections)
        with timed(bench.tell, f"{name}: {rows:,} records put into Kafka"):
            config = await fill_topic(bench, settings, source.MEMORIES, rows)
        yield Filled(rows, settings, config, *drawn(connection))


async def run(bench: Bench) -> list[Comparison]:
    """Bound, consumer, rebuild, bound again."""
    async with filled(bench, "faiss", bench.size(60_000, 20_000)) as table:
        bare(bench, table)  # warms the topic's pages up
        first = bare(bench, table)
        consumed, consuming = consume(bench, table)
        await check(table)
        rebuilt, rebuilding = rebuild(bench, table)
        await check(table)
        again = bare(bench, table)
    bench.tell(f"faiss: consumer {consumed:,.0f}, rebuild {rebuilt:,.0f}, bare {first:,.0f} and {again:,.0f} records/s")
    bounds = (first, again)
    name = "bare fetch and decode"
    return [
        Comparison("FAISS consumer", name, "records/s", consumed, bounds, AIM, consuming),
        Comparison("FAISS rebuild, verified", name, "records/s", rebuilt, bounds, AIM, rebuilding),
    ]


async def run_trained(bench: Bench) -> list[Comparison]:
    """A rebuild that ends in a partitioned index, against training and filling one from memory, before and after."""
    rows = bench.size(120_000, 20_000)
    async with filled(bench, "trained", rows, faiss={"flat_limit": rows // 2}) as table:
        first = trained(bench, table)
        rebuilt, details = rebuild(bench, table)
        await check(table)
        again = trained(bench, table)
    bench.tell(f"trained: rebuild {rebuilt:,.0f}, bare {first:,.0f} and {again:,.0f} records/s")
    name = "bare training and adding"
    return [Comparison("FAISS rebuild, IVF", name, "records/s", rebuilt, (first, again), AIM_TRAINED, details)]


def trained(bench: Bench, table: Filled) -> float:
    """Vectors a second of the bound."""
    with bench.start("trained", table.settings, str(table.rows), str(bench.seed)) as child:
        return float(table.rows / child.answer(LINE_SECONDS)["seconds"])


def bare(bench: Bench, table: Filled) -> float:
    """Records a second of the bound."""
    with bench.start("bare", table.settings, COLUMN, str(table.rows)) as child:
        answer = child.answer(LINE_SECONDS)
    require(answer["rows"] == table.rows, f"the bare loop read {answer['rows']} records")
    return float(answer["rate"])


def consume(bench: Bench, table: Filled) -> tuple[float, dict[str, float]]:
    """Vectors a second, between the first ones in the index and the last."""
    with bench.start("faiss", table.settings) as child:
        child.answer(LINE_SECONDS)
        samples = watch(child, table.rows)
        details = {
            "cpu_seconds_per_million_records": child.cpu_seconds() / table.rows * 1e6,
            "peak_mib": child.peak_bytes() / (1 << 20),
        }
    return rate(samples), details


def watch(child: Child, rows: int) -> list[Sample]:
    """How many vectors the index holds, over time."""
    samples: list[Sample] = []
    while not samples or samples[-1].rows < rows:
        answer = child.answer(LINE_SECONDS)
        samples.append(Sample(answer["seconds"], answer["rows"]))
    return samples


def rebuild(bench: Bench, table: Filled) -> tuple[float, dict[str, float]]:
    """Records a second from the call to the swap: replay, verification and snapshot included."""
    spawned = time.monotonic()
    with bench.start("rebuild", table.settings) as child:
        answer = child.answer(LINE_SECONDS)
    require(answer["records"] == table.rows, f"the rebuild replayed {answer['records']} records")
    phases = answer["phases"]
    details = {
        "startup_seconds": answer["ended"] - answer["seconds"] - spawned,
        "seconds": answer["seconds"],
        "replay_seconds": phases["verify"] - phases["replay"],
        "train_write_verify_seconds": phases["swap"] - phases["verify"],
        "swap_seconds": answer["ended"] - phases["swap"],
    }
    return table.rows / answer["seconds"], details


def drawn(connection: psycopg.Connection) -> tuple[list[bytes], Vectors]:
    """Keys and vectors of some rows, from PostgreSQL."""
    rows = connection.execute(
        "SELECT id, embedding FROM public.memories ORDER BY md5(id::text) LIMIT %s", [CHECKED]
    ).fetchall()
    return [b'{"id":%d}' % number for number, _ in rows], np.array([vector for _, vector in rows], dtype=np.float32)


async def check(table: Filled) -> None:
    """Opens the index from the disk and searches."""
    store = FaissStore(table.config)
    await store.open()
    try:
        held = await store.count(*table.config.faiss.table.split("."))
        require(held == table.rows, f"the index holds {held} of {table.rows} vectors")
        for key, hits in zip(table.keys, await store.search(table.vectors, 1), strict=True):
            require(hits[0].key == key and hits[0].score > OURS, f"{key!r} is not found by its own vector")
    finally:
        await store.close()
