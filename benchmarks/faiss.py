"""The FAISS consumer and a rebuild by replay, each a process of its own, against a bare loop over the same records.

The bare loop fetches with aiokafka and decodes the vectors, and does nothing with them. What counts for ours is the
number of vectors in the index; at the end rows drawn from PostgreSQL must be found by searching.
"""

from __future__ import annotations

import time
from typing import Any

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


async def run(bench: Bench) -> list[Comparison]:
    """Bound, consumer, rebuild, bound again."""
    rows = bench.size(60_000, 20_000)
    with source.database(bench.endpoints.postgres_dsn) as dsn, source.connect(dsn) as connection:
        source.create_memories(connection)
        with timed(bench.tell, f"faiss: {rows:,} vectors made"):
            source.fill_memories(connection, rows, bench.seed)
        settings = bench.settings(
            dsn, source.MEMORIES, postgres={"plugin": bench.endpoints.plugin}, tables=tables(COLUMN)
        )
        with timed(bench.tell, f"faiss: {rows:,} records put into Kafka"):
            config = await fill_topic(bench, settings, source.MEMORIES, rows)
        keys, wanted = drawn(connection)
        bare(bench, settings, rows)  # warms the topic's pages up
        first = bare(bench, settings, rows)
        consumed, consuming = consume(bench, settings, rows)
        await check(config, rows, keys, wanted)
        rebuilt, rebuilding = rebuild(bench, settings, rows)
        await check(config, rows, keys, wanted)
        again = bare(bench, settings, rows)
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
    with source.database(bench.endpoints.postgres_dsn) as dsn, source.connect(dsn) as connection:
        source.create_memories(connection)
        with timed(bench.tell, f"trained: {rows:,} vectors made"):
            source.fill_memories(connection, rows, bench.seed)
        settings = bench.settings(
            dsn,
            source.MEMORIES,
            postgres={"plugin": bench.endpoints.plugin},
            tables=tables(COLUMN),
            faiss={"flat_limit": rows // 2},
        )
        with timed(bench.tell, f"trained: {rows:,} records put into Kafka"):
            config = await fill_topic(bench, settings, source.MEMORIES, rows)
        keys, wanted = drawn(connection)
        first = trained(bench, settings, rows)
        rebuilt, details = rebuild(bench, settings, rows)
        await check(config, rows, keys, wanted)
        again = trained(bench, settings, rows)
    bench.tell(f"trained: rebuild {rebuilt:,.0f}, bare {first:,.0f} and {again:,.0f} records/s")
    name = "bare training and adding"
    return [Comparison("FAISS rebuild, IVF", name, "records/s", rebuilt, (first, again), AIM_TRAINED, details)]


def trained(bench: Bench, settings: dict[str, Any], rows: int) -> float:
    """Vectors a second of the bound."""
    with bench.start("trained", settings, str(rows), str(bench.seed)) as child:
        return float(rows / child.answer(LINE_SECONDS)["seconds"])


def tables(column: str) -> dict[str, Any]:
    """The section that names the vector column."""
    return {source.MEMORIES: {"vector": column}}


def bare(bench: Bench, settings: dict[str, Any], rows: int) -> float:
    """Records a second of the bound."""
    with bench.start("bare", settings, COLUMN, str(rows)) as child:
        answer = child.answer(LINE_SECONDS)
    require(answer["rows"] == rows, f"the bare loop read {answer['rows']} records")
    return float(answer["rate"])


def consume(bench: Bench, settings: dict[str, Any], rows: int) -> tuple[float, dict[str, float]]:
    """Vectors a second, between the first ones in the index and the last."""
    with bench.start("faiss", settings) as child:
        child.answer(LINE_SECONDS)
        samples = watch(child, rows)
        details = {
            "cpu_seconds_per_million_records": child.cpu_seconds() / rows * 1e6,
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


def rebuild(bench: Bench, settings: dict[str, Any], rows: int) -> tuple[float, dict[str, float]]:
    """Records a second from the call to the swap: replay, verification and snapshot included."""
    spawned = time.monotonic()
    with bench.start("rebuild", settings) as child:
        answer = child.answer(LINE_SECONDS)
    require(answer["records"] == rows, f"the rebuild replayed {answer['records']} records")
    phases = answer["phases"]
    details = {
        "startup_seconds": answer["ended"] - answer["seconds"] - spawned,
        "seconds": answer["seconds"],
        "replay_seconds": phases["verify"] - phases["replay"],
        "verify_seconds": phases["swap"] - phases["verify"],
        "swap_seconds": answer["ended"] - phases["swap"],
    }
    return rows / answer["seconds"], details


def drawn(connection: psycopg.Connection) -> tuple[list[bytes], Vectors]:
    """Keys and vectors of some rows, from PostgreSQL."""
    rows = connection.execute(
        "SELECT id, embedding FROM public.memories ORDER BY md5(id::text) LIMIT %s", [CHECKED]
    ).fetchall()
    return [b'{"id":%d}' % number for number, _ in rows], np.array([vector for _, vector in rows], dtype=np.float32)


async def check(config: Config, rows: int, keys: list[bytes], vectors: Vectors) -> None:
    """Opens the index from the disk and searches."""
    store = FaissStore(config)
    await store.open()
    try:
        held = await store.count(*config.faiss.table.split("."))
        require(held == rows, f"the index holds {held} of {rows} vectors")
        for key, hits in zip(keys, await store.search(vectors, 1), strict=True):
            require(hits[0].key == key and hits[0].score > OURS, f"{key!r} is not found by its own vector")
    finally:
        await store.close()
