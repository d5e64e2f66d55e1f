"""A table's snapshot into Kafka against `COPY … TO STDOUT` into nothing."""

from __future__ import annotations

import time
from pathlib import Path

import psycopg

from benchmarks import source, topic
from benchmarks.bench import Bench, require, timed, wait_for_slot
from benchmarks.children import cpu_seconds
from benchmarks.measure import Comparison
from cdc.config import parse
from cdc.embedded.identity import Identity

AIM = 0.5


async def run(bench: Bench) -> list[Comparison]:
    """A first snapshot warms the broker up, as a first COPY does the table's pages; a second one counts. CPU seconds of
    all processes are told one beside the other."""
    rows = bench.size(500_000, 50_000)
    with source.database(bench.endpoints.postgres_dsn) as dsn, source.connect(dsn) as connection:
        source.create_notes(connection)
        with timed(bench.tell, f"snapshot: {rows:,} rows written"):
            source.fill_notes(connection, rows, bench.seed)
        copy(connection, rows)
        await snapshot(bench, dsn, connection, rows)
        first = copy(connection, rows)
        ours, details = await snapshot(bench, dsn, connection, rows)
        bench.tell(f"snapshot: {ours:,.0f} rows/s, COPY {first:,.0f} rows/s")
        again = copy(connection, rows)
    return [Comparison("snapshot into Kafka", "COPY TO STDOUT", "rows/s", ours, (first, again), AIM, details)]


async def snapshot(bench: Bench, dsn: str, connection: psycopg.Connection, rows: int) -> tuple[float, dict[str, float]]:
    """Rows a second from the moment the reader has its slot until the last row is readable in the topic, and what was
    spent meanwhile."""
    settings = bench.settings(dsn, source.NOTES, postgres={"plugin": bench.endpoints.plugin})
    config = parse(settings)
    with bench.start("reader", settings) as child:
        started = wait_for_slot(connection, config.postgres.slot, child)

        def spent() -> tuple[float, float, float]:
            return child.cpu_seconds(), postgres_seconds(connection), cpu_seconds(bench.broker)

        seen = [spent()]
        found = await topic.arrival(config, source.NOTES, rows, child.look, lambda _: seen.append(spent()))
        peak = child.peak_bytes()
    require(found.rows == rows, f"{found.rows} rows in the topic")
    reader, postgres, broker = ((after - before) / rows * 1e6 for before, after in zip(seen[0], seen[-1], strict=True))
    details = {"cpu_seconds_per_million_rows": reader, "postgres_cpu": postgres, "broker_cpu": broker}
    return rows / (found.seconds - started), {**details, "peak_mib": peak / (1 << 20)}


def postgres_seconds(connection: psycopg.Connection) -> float:
    """CPU time of the whole server, with backends that have ended."""
    parent = int(Path(f"/proc/{connection.info.backend_pid}/stat").read_text().rpartition(")")[2].split()[1])
    server = Identity.of(parent)
    if server is None:
        return 0.0
    return sum(cpu_seconds(process.pid) for process in (server, *server.descendants()))


def copy(connection: psycopg.Connection, rows: int) -> float:
    """Rows a second."""
    started = time.monotonic()
    with connection.cursor() as cursor, cursor.copy("COPY public.notes TO STDOUT") as stream:
        size = sum(len(data) for data in stream)
    require(size > rows, "COPY gave nothing")
    return rows / (time.monotonic() - started)
