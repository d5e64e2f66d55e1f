"""Ours against other programs that carry changes from PostgreSQL into Kafka: the same rows, from the same log.

All drain one stretch of the log that was written before, each from a slot of its own into a topic of its own, one after
the other; then all once more, in the opposite order. Start-up and warm-up (a JVM compiles while it runs) are left out
for all alike: rates and CPU time are those between the moments when 25 % and 100 % of the rows were readable for
consumers of committed records. The whole time is told beside it. Afterwards each topic is read: no row may be missing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from aiokafka import TopicPartition

from benchmarks import source, topic
from benchmarks.bench import Bench, require, timed, wait_for_slot
from benchmarks.debezium import Debezium
from benchmarks.engine import Engine, Lane, Ours, prepare, unusable
from benchmarks.go_pq_cdc import GoPqCdc
from benchmarks.measure import Check, Comparison, Grid, Result, Sample
from benchmarks.source import Load

WARM = 0.25  # of the rows
MIB = 1 << 20
OURS: tuple[Engine, ...] = (Ours("wal2json"), Ours("pgoutput"))


@dataclass(frozen=True)
class Target:
    """Ours over a peer: rows a second at least, CPU time and memory at most; None where none is set."""

    peer: Engine
    speed: float
    cpu: float | None = None
    memory: float | None = None


TARGETS = (Target(Debezium(), 4, 1 / 3, 1 / 4), Target(GoPqCdc(), 1))


@dataclass(frozen=True)
class Drained:
    """`rate` in rows a second, `cpu` in seconds a million rows, both after the warm-up; `seconds` since its start."""

    rate: float
    cpu: float
    peak: int
    seconds: float
    records: int


Rounds = dict[Engine, list[Drained]]


async def run(bench: Bench) -> list[Result]:
    """A table of all, and the ratios that have a target. Who cannot run here is left out, with a line saying so."""
    engines: list[Engine] = []
    for engine in (*OURS, *(target.peer for target in TARGETS)):
        sentence = unusable(engine)
        if sentence is None:
            engines.append(engine)
        else:
            bench.tell(f"{engine.name} is left out: {sentence}")
    rounds = await measured(bench, engines)
    results: list[Result] = [table(rounds)]
    for target in TARGETS:
        for engine in OURS:
            if engine in rounds and target.peer in rounds:
                results += compared(engine, rounds[engine], target, rounds[target.peer])
    return results


async def measured(bench: Bench, engines: Sequence[Engine]) -> Rounds:
    """Two rounds, the second in the opposite order."""
    load = Load("300 B, 100/tx", bench.size(400_000, 40_000))
    order = [*engines, *reversed(engines)]
    rounds: Rounds = {engine: [] for engine in engines}
    with source.database(bench.endpoints.postgres_dsn) as dsn, source.connect(dsn) as connection:
        source.prepare_notes(connection, load, bench.seed)
        lanes = [await prepare(bench, connection, engine, dsn, source.NOTES) for engine in order]
        with timed(bench.tell, f"peers: {load.changes:,} rows written"):
            source.write_notes(dsn, load, bench.seed)
        source.log_end(connection)
        for engine, lane in zip(order, lanes, strict=True):
            drained = await drain(bench, connection, engine, lane, load.changes)
            bench.tell(f"peers: {engine.name} {drained.rate:,.0f} rows/s, {drained.cpu:.1f} CPU s per million")
            rounds[engine].append(drained)
    return rounds


async def drain(bench: Bench, connection: psycopg.Connection, engine: Engine, lane: Lane, rows: int) -> Drained:
    """One engine, from its start until all rows are readable."""
    seen: list[tuple[Sample, float]] = []
    spawned = time.monotonic()
    with engine.running(bench, lane) as running:
        wait_for_slot(connection, lane.slot, running.child)
        found = await topic.arrival(
            lane.config, lane.table, rows, running.look, lambda sample: seen.append((sample, running.cpu_seconds()))
        )
        peak = running.peak_bytes()
    require(await distinct_keys(lane) == rows, f"{engine.name}: rows are missing in the topic")
    require(
        found.rows == rows or engine.delivery != "exactly once", f"{engine.name}: {found.rows} records of {rows} rows"
    )
    rate, cpu = after_warm_up(seen, found.rows)
    return Drained(rate, cpu, peak, found.seconds - spawned, found.rows)


def after_warm_up(seen: Sequence[tuple[Sample, float]], records: int) -> tuple[float, float]:
    """Records a second and CPU seconds a million records, between the first look that saw a quarter and the last.

    `seen` holds a topic's ends with the CPU seconds spent so far. Ends count Kafka's own marks too, evenly spread, so
    that the last end stands for all `records`. Raises ValueError when everything came at once.
    """
    end = seen[-1][0].rows
    warm = next(place for place, (sample, _) in enumerate(seen) if sample.rows >= WARM * end)
    (first, before), (last, after) = seen[warm], seen[-1]
    if first == last:
        raise ValueError("all rows were seen at once: there is no rate after the warm-up")
    done = (last.rows - first.rows) / end * records
    return done / (last.seconds - first.seconds), (after - before) / done * 1e6


async def distinct_keys(lane: Lane) -> int:
    """Of the topic, by reading it."""
    partitions = [TopicPartition(name, number) for name in lane.topics for number in range(lane.partitions)]
    keys: set[bytes] = set()
    async with topic.committed_reader(lane.config) as consumer:
        ends = await consumer.end_offsets(partitions)
        consumer.assign(partitions)
        while any([await consumer.position(partition) < end for partition, end in ends.items()]):
            for messages in (await consumer.getmany(timeout_ms=topic.POLL_MS)).values():
                keys.update(message.key for message in messages)
    return len(keys)


def compared(engine: Engine, ours: Sequence[Drained], target: Target, peers: Sequence[Drained]) -> list[Result]:
    """The ratios."""
    name = f"{engine.name} over {target.peer.name}"
    rates = [run.rate for run in peers]
    speed = Comparison(
        name, target.peer.name, "rows/s", mean(ours, "rate"), (rates[0], rates[1]), target.speed,
        {"noise_of_ours": noise(ours), "noise_of_the_peer": noise(peers)},
    )  # fmt: skip
    results: list[Result] = [speed]
    for what, limit, measure in (("CPU time", target.cpu, "cpu"), ("memory", target.memory, "peak")):
        if limit is not None:
            results.append(Check(f"{name}, {what}", mean(ours, measure) / mean(peers, measure), limit))
    return results


def mean(runs: Sequence[Drained], measure: str) -> float:
    """Of both rounds."""
    return statistics.mean(float(getattr(run, measure)) for run in runs)


def noise(runs: Sequence[Drained]) -> float:
    """How far the rounds lie apart in speed, as a share of their mean."""
    rates = [run.rate for run in runs]
    return (max(rates) - min(rates)) / statistics.mean(rates)


def table(rounds: Rounds) -> Grid:
    """A row an engine."""
    columns = ("engine", "delivery", "rows/s", "round 1", "round 2", "CPU s per million", "peak MiB", "seconds in all")
    rows: list[tuple[str | float, ...]] = [
        (
            engine.name,
            engine.delivery,
            round(mean(runs, "rate")),
            *(round(run.rate) for run in runs),
            round(mean(runs, "cpu"), 1),
            round(mean(runs, "peak") / MIB),
            round(mean(runs, "seconds"), 1),
        )
        for engine, runs in rounds.items()
    ]
    return Grid("Peers: rows of 300 bytes, 100 a transaction", columns, tuple(rows))
