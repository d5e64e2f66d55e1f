"""Ours against other programs that carry changes from PostgreSQL into Kafka: the same rows, from the same log.

All drain one stretch of the log that was written before, each from a slot of its own into a topic of its own, one after
the other; then all once more, in the opposite order. Start-up and warm-up (a JVM compiles while it runs) are left out
for all alike: rates and CPU time are those between the moments when 25 % and 100 % of the rows were readable for
consumers of committed records. The whole time is told beside it. Afterwards each topic is read: no row may be missing.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import source
from benchmarks.bench import Bench, timed
from benchmarks.debezium import Debezium
from benchmarks.drain import Drained, drain
from benchmarks.engine import Engine, Ours, prepare, unusable
from benchmarks.go_pq_cdc import GoPqCdc
from benchmarks.measure import Check, Comparison, Grid, Result
from benchmarks.source import Load

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
            drained = await drain(bench, connection, engine, lane, load)
            bench.tell(f"peers: {engine.name} {drained.rate:,.0f} rows/s, {drained.cpu:.1f} CPU s per million")
            rounds[engine].append(drained)
    return rounds


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
    columns = (
        "engine", "delivery", "rows/s", "round 1", "round 2", "CPU s per million", "with warm-up", "walsender",
        "broker", "peak MiB", "seconds in all",
    )  # fmt: skip
    rows: list[tuple[str | float, ...]] = [
        (
            engine.name,
            engine.delivery,
            round(mean(runs, "rate")),
            *(round(run.rate) for run in runs),
            round(mean(runs, "cpu"), 1),
            round(mean(runs, "cpu_whole"), 1),
            round(mean(runs, "walsender"), 1),
            round(mean(runs, "broker"), 1),
            round(mean(runs, "peak") / MIB),
            round(mean(runs, "seconds"), 1),
        )
        for engine, runs in rounds.items()
    ]
    return Grid("Peers: rows of 300 bytes, 100 a transaction", columns, tuple(rows))
