"""The reader into Kafka against `pg_recvlogical -f /dev/null`, for rows, transactions and writers of all kinds.

A star: the usual case is 300-byte rows, inserted 100 a transaction by one writer; each other workload differs from it
in one way. Both plugins drain the same stretch of the log, each from a slot of its own; the bound starts at copies of
that slot, before ours and after. In the usual case ours runs twice (A/A), each time from a slot of its own: how far the
two lie apart is the noise floor of all rates here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import psycopg

from benchmarks import source
from benchmarks.bench import Bench, timed
from benchmarks.drain import MB, Drained, drain
from benchmarks.engine import Engine, Lane, Ours, prepare, unusable
from benchmarks.measure import Check, Comparison, Grid, Result
from benchmarks.reader import bound, copy_slot, decoder_options
from benchmarks.source import LARGE, SMALL, Load

AIM = 0.7
BOUND = "pg_recvlogical -f /dev/null"
STEADY_MB, HUGE_MB = 150, 300  # resident, of the reader: in the usual case, and through the million rows
QUICK_SHARE = 10  # a quick run has that part of the rows, and of the star two workloads that differ most
USUAL = Load("300 B, 100/tx", 400_000)
HUGE = Load("1 tx of 1,000,000", 1_000_000, transaction=1_000_000)
STAR = (
    Load("100 B", 300_000, sums=SMALL),
    Load("1.6 kB", 100_000, sums=LARGE),
    Load("384 floats", 40_000, sums=SMALL, vector=True),
    Load("mixed", 200_000, mixed=True),
    Load("1/tx", 100_000, transaction=1),
    Load("10,000/tx", 300_000, transaction=10_000),
    Load("8 writers", 200_000, writers=8),
    HUGE,
)


async def usual(bench: Bench) -> list[Result]:
    """The usual case, with A/A and the target for its memory."""
    found: list[Result] = []
    twice: list[tuple[str | float, ...]] = []
    for engine, (comparison, runs) in (await measured(bench, USUAL, again=not bench.quick)).items():
        found.append(dataclasses.replace(comparison, aim=AIM))
        peak = max(run.peak for run in runs) / MB
        found.append(Check(f"memory, steady: {engine.name}", peak, STEADY_MB, "MB"))
        if bench.quick:
            continue
        first, second = (run.whole_rate for run in runs)
        apart = f"±{abs(first - second) / max(first, second):.0%}"
        cpu = (*(run.cpu_whole for run in runs), runs[0].walsender, runs[0].broker)
        twice.append((engine.name, round(first), round(second), apart, *(round(seconds, 1) for seconds in cpu)))
    columns = ("engine", "rows/s", "rows/s again", "apart", "CPU s per million", "again", "walsender", "broker")
    return [*found, Grid("A/A: the same twice, the noise floor of rates", columns, tuple(twice))] if twice else found


async def star(bench: Bench) -> list[Result]:
    """The other workloads, and the target for memory through a million rows."""
    found: list[Result] = []
    for load in [load for load in STAR if load.mixed or load.vector] if bench.quick else STAR:
        for engine, (comparison, runs) in (await measured(bench, load)).items():
            found.append(comparison)
            if load is HUGE:
                peak = runs[0].peak / MB
                found.append(Check(f"memory, {load.name}: {engine.name}", peak, HUGE_MB, "MB"))
    return [*found, _table([result for result in found if isinstance(result, Comparison)])]


def smaller(load: Load) -> Load:
    """Of the same kind, with whole transactions."""
    part = load.changes // QUICK_SHARE
    transaction = min(load.transaction, part)
    return dataclasses.replace(load, changes=part - part % transaction, transaction=transaction)


async def measured(
    bench: Bench, load: Load, *, again: bool = False
) -> dict[Engine, tuple[Comparison, Sequence[Drained]]]:
    """One load, drained by ours with each plugin this PostgreSQL has."""
    load = smaller(load) if bench.quick else load
    engines: list[Engine] = [engine for engine in (Ours("wal2json"), Ours("pgoutput")) if unusable(engine) is None]
    with source.database(bench.endpoints.postgres_dsn) as dsn, source.connect(dsn) as connection:
        source.prepare_notes(connection, load, bench.seed)
        lanes = {
            engine: [await prepare(bench, connection, engine, dsn, source.NOTES) for _ in range(1 + again)]
            for engine in engines
        }
        with timed(bench.tell, f"{load.name}: {load.changes:,} changes written"):
            source.write_notes(dsn, load, bench.seed)
        end = source.log_end(connection)
        return {
            engine: await _compared(bench, connection, dsn, engine, ways, load, end) for engine, ways in lanes.items()
        }


async def _compared(
    bench: Bench, connection: psycopg.Connection, dsn: str, engine: Engine, lanes: list[Lane], load: Load, end: str
) -> tuple[Comparison, Sequence[Drained]]:
    slots = [copy_slot(connection, lanes[0].slot, number) for number in range(2)]
    options = decoder_options(lanes[0].config, connection)
    first = bound(connection, dsn, slots[0], options, end, load.changes)
    runs = [await drain(bench, connection, engine, lane, load) for lane in lanes]
    second = bound(connection, dsn, slots[1], options, end, load.changes)
    ours = sum(run.whole_rate for run in runs) / len(runs)  # as the bound: from the stream's start
    name = f"{engine.name}: {load.name}"
    comparison = Comparison(name, BOUND, "rows/s", ours, (first, second), None, runs[0].details())
    bench.tell(f"{name}: {ours:,.0f} of {first:,.0f} and {second:,.0f} rows/s, {runs[0].cpu_whole:.1f} s CPU")
    return comparison, runs


def _table(comparisons: Sequence[Comparison]) -> Grid:
    columns = ("workload", "rows/s", "bound", "ratio", "CPU s per million", "walsender", "broker", "peak MB")
    return Grid(
        "Reader into Kafka, by workload",
        columns,
        tuple(
            (
                result.name,
                round(result.ours),
                round(sum(result.bounds) / 2),
                round(result.ratio, 2),
                round(result.details["cpu_seconds_per_million_rows"], 1),
                round(result.details["walsender_cpu"], 1),
                round(result.details["broker_cpu"], 1),
                round(result.details["peak_mb"]),
            )
            for result in comparisons
        ),
    )
