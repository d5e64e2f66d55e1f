"""A stretch of the log drained by an engine into Kafka: the same for every engine and every load.

The changes are in the log before the program starts. Its start-up and warm-up are left out for all alike: rates and CPU
time are those between the moments when 25 % and 100 % of the records were readable for consumers of committed records;
the whole time is told beside them. Afterwards the topic is read: nothing may be missing, and of who promises to deliver
exactly once nothing may be there twice.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from benchmarks import topic
from benchmarks.bench import Bench, require, wait_for_slot
from benchmarks.children import cpu_seconds
from benchmarks.engine import Engine, Lane
from benchmarks.measure import Sample
from benchmarks.source import Load

WARM = 0.25  # of the records
MB = 1e6


@dataclass(frozen=True)
class Drained:
    """`rate`: changes a second; `cpu`: seconds a million changes, of the program and all it started; `cpu_whole`: the
    same with the warm-up (of few rows much is done before the first are readable, so that `cpu` is low); `peak`: bytes
    resident; `startup`: seconds until the server streamed; `seconds`: from its start until everything was readable;
    `walsender` and `broker`: their CPU seconds a million changes, beside."""

    rate: float
    cpu: float
    cpu_whole: float
    peak: int
    startup: float
    seconds: float
    records: int
    changes: int
    walsender: float = 0.0
    broker: float = 0.0

    @property
    def whole_rate(self) -> float:
        """Changes a second with the warm-up, from the moment when the server streamed."""
        return self.changes / (self.seconds - self.startup)

    def details(self) -> dict[str, float]:
        """For a table."""
        return {
            "cpu_seconds_per_million_rows": self.cpu_whole,
            "cpu_after_warm_up": self.cpu,
            "peak_mb": self.peak / MB,
            "rate_after_warm_up": self.rate,
            "startup_seconds": self.startup,
            "seconds": self.seconds,
            "walsender_cpu": self.walsender,
            "broker_cpu": self.broker,
        }


async def drain(bench: Bench, connection: psycopg.Connection, engine: Engine, lane: Lane, load: Load) -> Drained:
    """Runs an engine from its start until all changes of the load are readable."""
    records = load.changes + (engine.delete_records - 1) * load.deletes
    spawned = time.monotonic()
    with engine.running(bench, lane) as running:
        started = wait_for_slot(connection, lane.slot, running.child)
        seen = [(Sample(started, 0), running.cpu_seconds())]
        servers = Servers(bench, connection, lane.slot)
        found = await topic.arrival(
            lane.config, lane.table, records, running.look, lambda sample: seen.append((sample, running.cpu_seconds()))
        )
        beside = servers.spent(load.changes)
        peak = running.peak_bytes()
    right = found.rows == records or (found.rows > records and engine.delivery != "exactly once")
    require(right, f"{engine.name}: {found.rows} records in the topic, not {records}")
    if not load.mixed:
        require(await distinct_keys(lane) == load.changes, f"{engine.name}: rows are missing in the topic")
    rate, cpu = after_warm_up(seen, load.changes)
    whole = (seen[-1][1] - seen[0][1]) / load.changes * 1e6
    return Drained(
        rate, cpu, whole, peak, started - spawned, found.seconds - spawned, found.rows, load.changes, *beside
    )


class Servers:
    """CPU time of the walsender that serves a slot, and of the broker, from now on."""

    def __init__(self, bench: Bench, connection: psycopg.Connection, slot: str) -> None:
        query = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s"
        row = connection.execute(query, [slot]).fetchone()
        self._pids = (row[0] if row and row[0] else 0, bench.broker)
        self._before = self._now()

    def _now(self) -> list[float]:
        return [cpu_seconds(pid) if pid else 0.0 for pid in self._pids]

    def spent(self, changes: int) -> tuple[float, float]:
        """Seconds a million changes: walsender, broker."""
        sender, broker = (now - before for now, before in zip(self._now(), self._before, strict=True))
        return sender / changes * 1e6, broker / changes * 1e6


def after_warm_up(seen: Sequence[tuple[Sample, float]], changes: int) -> tuple[float, float]:
    """Changes a second and CPU seconds a million changes, between the first look that saw a quarter and the last.

    `seen` holds a topic's ends with the CPU seconds spent so far. Ends count Kafka's own marks and tombstones too,
    evenly spread, so that the last end stands for all `changes`. When everything came at once, since the first entry.
    """
    end = seen[-1][0].rows
    warm = next(place for place, (sample, _) in enumerate(seen) if sample.rows >= WARM * end)
    (first, before), (last, after) = seen[warm if warm < len(seen) - 1 else 0], seen[-1]
    done = (last.rows - first.rows) / end * changes
    return done / (last.seconds - first.seconds), (after - before) / done * 1e6


async def distinct_keys(lane: Lane) -> int:
    """Of the topic, by reading it."""
    partitions = topic.partitions_of(lane.config, lane.table)
    keys: set[bytes] = set()
    async with topic.committed_reader(lane.config) as consumer:
        ends = await consumer.end_offsets(partitions)
        consumer.assign(partitions)
        while any([await consumer.position(partition) < end for partition, end in ends.items()]):
            for messages in (await consumer.getmany(timeout_ms=topic.POLL_MS)).values():
                keys.update(message.key for message in messages)
    return len(keys)
