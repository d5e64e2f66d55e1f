"""A table's snapshot into Kafka against `COPY … TO STDOUT` into nothing."""

from __future__ import annotations

import time

import psycopg

from benchmarks import source, topic
from benchmarks.bench import Bench, require, timed, wait_for_slot
from benchmarks.measure import Comparison
from cdc.config import parse

AIM = 0.5


async def run(bench: Bench) -> list[Comparison]:
    """Time of ours runs from the moment the reader has its slot until the last row is readable in the topic."""
    rows = bench.size(500_000, 50_000)
    with source.database(bench.endpoints.postgres_dsn) as dsn, source.connect(dsn) as connection:
        source.create_notes(connection)
        with timed(bench.tell, f"snapshot: {rows:,} rows written"):
            source.fill_notes(connection, rows, bench.seed)
        copy(connection, rows)  # warms the table's pages up
        first = copy(connection, rows)
        settings = bench.settings(dsn, source.NOTES, postgres={"plugin": bench.endpoints.plugin})
        config = parse(settings)
        with bench.start("reader", settings) as child:
            started = wait_for_slot(connection, config.postgres.slot, child)
            idle = child.cpu_seconds()
            found = await topic.arrival(config, source.NOTES, rows, child.look)
            cpu, peak = child.cpu_seconds() - idle, child.peak_bytes()
        require(found.rows == rows, f"{found.rows} rows in the topic")
        ours = rows / (found.seconds - started)
        bench.tell(f"snapshot: {ours:,.0f} rows/s, COPY {first:,.0f} rows/s")
        again = copy(connection, rows)
    details = {"cpu_seconds_per_million_rows": cpu / rows * 1e6, "peak_mib": peak / (1 << 20)}
    return [Comparison("snapshot into Kafka", "COPY TO STDOUT", "rows/s", ours, (first, again), AIM, details)]


def copy(connection: psycopg.Connection, rows: int) -> float:
    """Rows a second."""
    started = time.monotonic()
    with connection.cursor() as cursor, cursor.copy("COPY public.notes TO STDOUT") as stream:
        size = sum(len(data) for data in stream)
    require(size > rows, "COPY gave nothing")
    return rows / (time.monotonic() - started)
