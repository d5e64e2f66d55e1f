"""From ten thousand rows to millions: rates have to stay flat, and what looks at every row may only grow in proportion.

Each size has a table of its own, of 100-byte rows, which the reader snapshots into Kafka. Then the reader is stopped,
changes are made, and it starts again: how long until the first of them is in Kafka, and how fast do they come. After
that the Redis consumer takes everything, and `cdc verify` compares Redis with PostgreSQL; a difference ends the
benchmark. The index has sizes of its own, of vectors of 384 floats, which `cdc verify` compares likewise.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import psycopg
from redis import Redis

from benchmarks import source, topic
from benchmarks.bench import Bench, require, timed, wait_for_slot
from benchmarks.children import Child
from benchmarks.drain import MB, after_warm_up
from benchmarks.engine import Lane, Ours
from benchmarks.faiss import filled as indexed
from benchmarks.measure import Check, Grid, Result, Sample
from benchmarks.source import SMALL, Load
from cdc.commands.index_client import RemoteIndex
from cdc.config import Config, parse
from cdc.embedded.folder import free_port
from cdc.errors import ConnectError, StoreError

SIZES, FULL, QUICK = (10_000, 100_000, 1_000_000), (10_000, 100_000, 1_000_000, 5_000_000), (10_000, 50_000)
VECTORS, FULL_VECTORS, QUICK_VECTORS = (20_000, 100_000), (100_000, 1_000_000), (2_000, 10_000)
CHANGES, QUICK_CHANGES = 100_000, 20_000  # by the stream, behind each size
LOOK_SECONDS = 0.05
STALLED_SECONDS = 120.0  # without a new key in Redis
VERIFY_SECONDS = 1800.0
INDEXED_SECONDS = 600.0  # until the index holds all vectors
FLAT, LINEAR = 0.7, 1.5  # targets: of the largest size, its rate and its time a row, against the size before


@dataclass(frozen=True)
class Size:
    """What one size took; rates a second, times in seconds, memory in bytes. `verify` looks at `verified` rows."""

    rows: int
    snapshot: float
    redis: float
    first: float
    stream: float
    verify: float
    verified: int
    peak: int


async def run(bench: Bench) -> list[Result]:
    """One size after the other, and how the largest stands to the one before."""
    wanted = QUICK if bench.quick else FULL if bench.full_growth else SIZES
    sizes = [await measured(bench, rows) for rows in wanted]
    before, last = sizes[-2:]
    columns = (
        "rows",
        "snapshot rows/s",
        "Redis rows/s",
        "start to first change s",
        "stream rows/s",
        "verify s",
        "of rows",
        "peak MB",
    )
    grid = Grid(
        "Growth",
        columns,
        tuple(
            (
                size.rows, round(size.snapshot), round(size.redis), round(size.first, 2), round(size.stream),
                round(size.verify, 2), size.verified, round(size.peak / MB),
            )
            for size in sizes
        ),
    )  # fmt: skip
    at = f"{last.rows:,} rows over {before.rows:,}"
    return [
        grid,
        *await verified_index(bench),
        Check(f"snapshot rate, {at}", last.snapshot / before.snapshot, FLAT, at_most=False),
        Check(f"stream rate, {at}", last.stream / before.stream, FLAT, at_most=False),
        Check(f"start to first change, {at}", last.first / before.first, LINEAR),
        Check(f"verify, time a row, {at}", last.verify / last.verified / (before.verify / before.verified), LINEAR),
    ]


async def verified_index(bench: Bench) -> list[Result]:
    """The same of the index, as far as verify is concerned."""
    sizes = QUICK_VECTORS if bench.quick else FULL_VECTORS if bench.full_growth else VECTORS
    seconds = [await verify_of_index(bench, rows) for rows in sizes]
    table = tuple((rows, round(took, 2)) for rows, took in zip(sizes, seconds, strict=True))
    (before, last), (short, long) = sizes, seconds
    ratio = long / last / (short / before)
    name = f"verify of the index, time a row, {last:,} vectors over {before:,}"
    return [Grid("Growth of the index", ("vectors", "verify s"), table), Check(name, ratio, LINEAR)]


async def verify_of_index(bench: Bench, rows: int) -> float:
    """Seconds of the command, its start included."""
    async with indexed(bench, "growth", rows, index={"port": free_port(set())}) as table:
        with bench.start("reader", table.settings), bench.command(table.settings, "consume", "faiss") as consumer:
            await in_the_index(table.config, consumer, rows)
            begun = time.monotonic()
            with bench.command(table.settings, "verify", "--store", "faiss", "--json") as verify:
                answer = await asyncio.to_thread(verify.answer, VERIFY_SECONDS)
            took = time.monotonic() - begun
    require(answer.get("equal") is True, f"the index differs from PostgreSQL: {answer}")
    bench.tell(f"growth: {rows:,} vectors: verify {took:.1f} s")
    return took


async def in_the_index(config: Config, consumer: Child, rows: int) -> None:
    """Waits until the index holds that many vectors."""
    deadline, held = time.monotonic() + INDEXED_SECONDS, 0
    async with RemoteIndex(config) as index:
        while held < rows:
            consumer.look()
            require(time.monotonic() < deadline, f"the index stands at {held} of {rows} vectors")
            try:
                held = await index.count(*config.faiss.table.split(".", 1))
            except (ConnectError, StoreError):
                held = 0  # not up yet
            await asyncio.sleep(LOOK_SECONDS)


async def measured(bench: Bench, rows: int) -> Size:
    """One size."""
    load = Load("growth", bench.size(CHANGES, QUICK_CHANGES), sums=SMALL, after=rows)
    with source.database(bench.endpoints.postgres_dsn) as dsn, source.connect(dsn) as connection:
        source.create_notes(connection)
        with timed(bench.tell, f"growth: {rows:,} rows written"):
            source.fill_notes(connection, rows, bench.seed, SMALL)
        settings = bench.settings(dsn, source.NOTES, postgres={"plugin": bench.endpoints.plugin})
        lane = Lane(settings, parse(settings), source.NOTES)
        snapshot, _first, peak = await carried(bench, connection, lane, rows)
        source.write_notes(dsn, load, bench.seed)
        source.log_end(connection)
        stream, first, _peak = await carried(bench, connection, lane, rows + load.changes, rows)
        with bench.start("redis", settings) as consumer, Redis.from_url(lane.config.redis.url) as server:
            redis = filled(server, consumer, rows + load.changes)
            with bench.start("reader", settings) as reader:
                wait_for_slot(connection, lane.slot, reader)
                begun = time.monotonic()
                with bench.command(settings, "verify", "--store", "redis", "--json") as verify:
                    answer = verify.answer(VERIFY_SECONDS)
                took = time.monotonic() - begun
            require(answer.get("equal") is True, f"Redis differs from PostgreSQL: {answer}")
            server.flushdb(asynchronous=True)  # millions of keys take longer than a client waits
    bench.tell(f"growth: {rows:,} rows: snapshot {snapshot:,.0f}/s, stream {stream:,.0f}/s, verify {took:.1f} s")
    return Size(rows, snapshot, redis, first, stream, took, rows + load.changes, peak)


async def carried(
    bench: Bench, connection: psycopg.Connection, lane: Lane, rows: int, before: int = 0
) -> tuple[float, float, int]:
    """Runs the reader until `rows` records are in Kafka, where `before` are already: rows a second after the warm-up,
    seconds from the start to the first, peak memory."""
    seen: list[tuple[Sample, float]] = []
    base = await topic.end(lane.config, lane.table) if before else 0  # Kafka's own marks count too

    def note(sample: Sample) -> None:
        if sample.rows > base:
            seen.append((Sample(sample.seconds, sample.rows - base), 0.0))

    spawned = time.monotonic()
    with Ours(lane.config.postgres.plugin).running(bench, lane) as running:
        started = wait_for_slot(connection, lane.slot, running.child)
        found = await topic.arrival(lane.config, lane.table, rows, running.look, note)
        peak = running.peak_bytes()
    require(found.rows == rows, f"{found.rows} records in the topic, not {rows}")
    return after_warm_up([(Sample(started, 0), 0.0), *seen], rows - before)[0], seen[0][0].seconds - spawned, peak


def filled(server: Redis, consumer: Child, rows: int) -> float:
    """Waits until Redis holds all rows; rows a second after the warm-up."""
    samples: list[Sample] = []
    begun = time.monotonic()
    while not samples or samples[-1].rows < rows:
        consumer.look()
        held, clock = server.dbsize() - 1, time.monotonic()  # the sentinel is a key too
        if held > 0 and (not samples or held > samples[-1].rows):
            samples.append(Sample(clock, held))
        require(not samples or clock < samples[-1].seconds + STALLED_SECONDS, f"Redis stands at {held} of {rows} rows")
        time.sleep(LOOK_SECONDS)
    return after_warm_up([(sample, 0.0) for sample in (Sample(begun, 0), *samples)], rows)[0]
