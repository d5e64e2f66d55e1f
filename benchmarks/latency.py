"""From commit to visible: for a reader of committed records, in Redis, and by searching; ours, the peers', the floor.

Rows of 300 bytes come at a steady rate in 100 transactions a second (benchmarks/writer.py), whatever becomes of them,
and are seen by an observer of each kind (benchmarks/observe.py). Every engine has the same rows, rates and observer; a
program's warm-up is not counted. The floor is what nobody can undercut: the raw stream's arrival at a bare replication
connection, plus one bare Kafka transaction of one record, both measured at the same time and the same rate
(benchmarks/floor.py); their samples are added one by one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import psycopg
from redis.asyncio import Redis

from benchmarks import source, topic
from benchmarks.bench import Bench, timed, wait_for_slot
from benchmarks.children import Child
from benchmarks.debezium import Debezium
from benchmarks.engine import Engine, Lane, Ours, prepare, unusable
from benchmarks.go_pq_cdc import GoPqCdc
from benchmarks.measure import Check, Latency, Result, latency
from benchmarks.observe import Places, Waits, observed
from benchmarks.source import SMALL, Load
from benchmarks.writer import TRANSACTIONS, WARM_SECONDS, Schedule

RATES, QUICK_RATES = (1000, 10_000), (1000,)  # rows a second
VECTOR_RATES = (1000, 2500, 5000, 10_000)  # as far as they are sustained
SEARCHED = 10  # every tenth transaction is searched for: more would load the index with looking
READY_SECONDS = 60.0
OVER_FLOOR, OVER_PEER, OVER_KAFKA = 2.0, 0.25, 2.0  # targets of ours: at most that many times
ROWS, VECTORS = Load("300 B", 0), Load("384 floats", 0, sums=SMALL, vector=True)
PEERS: tuple[Engine, ...] = (Debezium(), GoPqCdc())
AIMED = "Debezium"  # the one that a target speaks of

Rated = dict[int, dict[str, Waits]]  # rate → place → waits


async def run(bench: Bench) -> list[Result]:
    """Kafka for everyone; then Redis, then the index."""
    results: list[Result] = []
    rates = QUICK_RATES if bench.quick else RATES
    plugins = ("pgoutput",) if bench.quick else ("wal2json", "pgoutput")
    ours = [engine for engine in map(Ours, plugins) if unusable(engine) is None]
    peers = [engine for engine in PEERS if (reason := unusable(engine)) is None or bench.tell(f"left out: {reason}")]
    kafka = {engine: await at_rates(bench, engine, rates) for engine in (*ours, *peers)}
    for engine, rated in kafka.items():
        results += [told(f"commit → Kafka, {engine.name}", rate, found["Kafka"]) for rate, found in rated.items()]
    for engine in ours:
        for rate in rates:
            floor = await floor_at(bench, engine, rate)
            results.append(told(f"floor of commit → Kafka, {engine.plugin}", rate, floor))
            ordered = await floor_at(bench, engine, rate, "ordered")
            results.append(told(f"the same over a topic's partitions, in order, {engine.plugin}", rate, ordered))
            results += under(f"{engine.name} over the floor", rate, kafka[engine][rate]["Kafka"], floor, OVER_FLOOR)
            for peer in [peer for peer in peers if peer.name == AIMED]:
                found, other = kafka[engine][rate]["Kafka"], kafka[peer][rate]["Kafka"]
                results += under(f"{engine.name} over {peer.name}", rate, found, other, OVER_PEER)
    return [*results, *await stores(bench, ours[0], rates)]


async def stores(bench: Bench, engine: Engine, rates: Sequence[int]) -> list[Result]:
    """Redis at the same rates; the index with vectors, as fast as it goes."""
    results: list[Result] = []
    for rate, found in (await at_rates(bench, engine, rates, store="redis")).items():
        results += beside_kafka("Redis", rate, found)
    for rate in rates if bench.quick else VECTOR_RATES:
        found = (await at_rates(bench, engine, [rate], store="faiss"))[rate]
        told_here = beside_kafka("search", rate, found)
        if not found["search"].sustained:  # no target asks for that rate of vectors
            results += [result for result in told_here if isinstance(result, Latency)]
            bench.tell(f"latency: vectors are not sustained at {rate} rows/s")
            break
        results += told_here
    return results


async def at_rates(bench: Bench, engine: Engine, rates: Sequence[int], store: str = "") -> Rated:
    """One engine, and perhaps one store behind it, at one rate after the other."""
    load = VECTORS if store == "faiss" else ROWS
    found: Rated = {}
    with source.database(bench.endpoints.postgres_dsn) as dsn, source.connect(dsn) as connection:
        source.prepare_notes(connection, load, bench.seed)
        columns = {source.NOTES: {"vector": "embedding"} if load.vector else {}}
        lane = await prepare(bench, connection, engine, dsn, source.NOTES, tables=columns)
        with engine.running(bench, lane) as running:
            wait_for_slot(connection, lane.slot, running.child)
            first = 0
            for rate in rates:
                schedule = Schedule(dsn, rate, bench.size(10, 3), first)
                first += schedule.rows
                source.stage(connection, schedule.first, schedule.rows, bench.seed, load)
                what = f"latency: {engine.name} {store}, {schedule.rows:,} rows at {rate}/s"
                here = placed(bench, connection, lane, schedule, running.child, store)
                with timed(bench.tell, what), here as places:
                    found[rate] = await observed(places, schedule)
        if store == "redis":
            async with Redis.from_url(lane.config.redis.url) as server:
                await server.flushdb()
    return found


@contextlib.contextmanager
def placed(
    bench: Bench, connection: psycopg.Connection, lane: Lane, schedule: Schedule, reader: Child, store: str
) -> Iterator[Places]:
    """Starts the store and says where to look."""
    settings = dict(lane.settings)
    if store == "redis":
        with bench.start("redis", settings) as child:
            yield Places(lane, (reader, child), redis_url=lane.config.redis.url)
    elif store == "faiss":
        searched = schedule.watched[SEARCHED - 1 :: SEARCHED]
        vectors = save_vectors(connection, list(searched), bench.folder / "vectors.npy")
        with bench.start("faiss", settings, str(vectors)) as child:
            child.answer(READY_SECONDS)
            yield Places(lane, (reader, child), index=child, searched=searched)
    else:
        yield Places(lane, (reader,))


def save_vectors(connection: psycopg.Connection, ids: list[int], path: Path) -> Path:
    """The vectors of some rows, in that order, for the process that searches."""
    query = "SELECT embedding FROM public.notes_staged WHERE id = ANY(%s) ORDER BY id"
    rows = connection.execute(query, [ids]).fetchall()
    np.save(path, np.array([vector for (vector,) in rows], dtype=np.float32))
    return path


async def floor_at(bench: Bench, engine: Engine, rate: int, kind: str = "transaction") -> Waits:
    """Arrival of the raw stream plus a Kafka transaction (benchmarks/floor.py has two kinds), one by one."""
    seconds = bench.size(10, 3)
    number = TRANSACTIONS * (seconds + WARM_SECONDS)
    with source.database(bench.endpoints.postgres_dsn) as dsn, source.connect(dsn) as connection:
        source.prepare_notes(connection, ROWS, bench.seed)
        lane = await prepare(bench, connection, engine, dsn, source.NOTES)
        schedule = Schedule(dsn, rate, seconds)
        source.stage(connection, 0, schedule.rows, bench.seed, ROWS)
        name = f"{lane.config.kafka.prefix}.floor"
        await topic.plain(lane.config.kafka, name, lane.config.kafka.partitions)
        path = bench.folder / f"floor-{lane.slot}.json"
        path.write_text(json.dumps(lane.settings))
        command = [sys.executable, "-m", "benchmarks.floor"]
        with Child([*command, "stream", str(path), str(schedule.size), str(number)]) as stream:
            wait_for_slot(connection, lane.slot, stream)
            with Child([*command, kind, str(path), name, str(number)]) as kafka, schedule.start() as writer:
                written = [await asyncio.to_thread(writer.answer, READY_SECONDS) for _ in range(2)][1]
                arrivals, took = [await asyncio.to_thread(one.answer, READY_SECONDS) for one in (stream, kafka)]
    arrived = [at - commit for at, commit in zip(arrivals, written["commits"], strict=True)]
    waits = [max(0.0, wait) + more for wait, more in zip(arrived, took, strict=True)]
    return Waits(tuple(waits[TRANSACTIONS * WARM_SECONDS :]), written["behind"])


def told(name: str, rate: int, waits: Waits) -> Latency:
    """Percentiles, and whether the rate was kept."""
    return latency(name if waits.sustained else f"{name} (not sustained)", rate, waits.seconds)


def under(name: str, rate: int, ours: Waits, other: Waits, target: float) -> list[Result]:
    """p50 and p99 of ours as ratios, where the other keeps the rate; ours has to, or misses the target."""
    if not other.sustained:
        return []
    (a, b) = (latency("", rate, waits.seconds) for waits in (ours, other))
    return [
        Check(f"{name}, p50 at {rate} rows/s", a.p50 / b.p50, target),
        Check(f"{name}, p99 at {rate} rows/s", a.p99 / b.p99, target),
    ]


def beside_kafka(place: str, rate: int, found: Mapping[str, Waits]) -> list[Result]:
    """What the store adds, in the same pipeline."""
    results: list[Result] = [told(f"commit → {name}, with {place}", rate, waits) for name, waits in found.items()]
    return results + under(f"commit → {place} over commit → Kafka", rate, found[place], found["Kafka"], OVER_KAFKA)[1:]
