"""A stretch of the log drained by an engine into Kafka, and by `pg_recvlogical` into nothing: the same for all.

The changes are in the log before the program starts. Rates are those of the running program: for an engine between the
first records that committed readers see and the last (counted by reading), for the bound from the moment the server
streams until pg_recvlogical has received the end. Start-up is told apart.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import psycopg

from benchmarks import topic
from benchmarks.bench import Bench, require, wait_for_slot
from benchmarks.engine import Engine, Lane
from benchmarks.measure import Sample, rate
from benchmarks.source import Load


@dataclass(frozen=True)
class Drained:
    """`rate` in changes a second; `startup`: seconds until the server streamed; `seconds`: from then to the last."""

    rate: float
    cpu_seconds: float
    peak_bytes: int
    startup: float
    seconds: float
    changes: int

    @property
    def cpu_per_million(self) -> float:
        """CPU seconds of the program and all it started, a million changes."""
        return self.cpu_seconds / self.changes * 1e6

    def details(self) -> dict[str, float]:
        """For a table."""
        return {
            "cpu_seconds_per_million_rows": self.cpu_per_million,
            "peak_mib": self.peak_bytes / (1 << 20),
            "startup_seconds": self.startup,
            "seconds": self.seconds,
        }


async def drain(bench: Bench, connection: psycopg.Connection, engine: Engine, lane: Lane, load: Load) -> Drained:
    """Runs an engine until all changes of the load are readable; none may be missing, and of who promises to deliver
    exactly once none may be there twice."""
    records = load.changes + (engine.delete_records - 1) * load.deletes
    samples: list[Sample] = []
    spawned = time.monotonic()
    with engine.running(bench, lane) as running:
        started = wait_for_slot(connection, lane.slot, running.child)
        idle = running.cpu_seconds()
        found = await topic.arrival(lane.config, lane.table, records, running.look, samples.append)
        cpu, peak = running.cpu_seconds() - idle, running.peak_bytes()
    right = found.rows == records or (found.rows > records and engine.delivery != "exactly once")
    require(right, f"{engine.name}: {found.rows} records in the topic, not {records}")
    seconds = found.seconds - started
    share = load.changes / records  # a delete may be two records
    steady = share * rate(samples) if len(samples) > 2 else load.changes / seconds
    return Drained(steady, cpu, peak, started - spawned, seconds, load.changes)
