"""The reader into Kafka against `pg_recvlogical -f /dev/null`: same plugin, same options, same stretch of the log.

The bound receives and forgets; ours decodes, makes records, and has them committed in Kafka by transactions with
acks=all. Both start at copies of one slot. Time runs from the moment the server streams from the slot; it ends for the
bound when pg_recvlogical has received the end of the log, for ours when the last row is readable for consumers of
committed records.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from benchmarks import source, topic
from benchmarks.bench import Bench, require, timed, wait_for_slot
from benchmarks.children import Child
from benchmarks.measure import Comparison
from cdc.config import Config, parse
from cdc.embedded import programs
from cdc.source.catalog import Catalog
from cdc.source.events import Decoder
from cdc.source.pgoutput import PgoutputDecoder
from cdc.source.wal2json import Wal2jsonDecoder

AIM = 0.5
DECODERS: dict[str, Callable[[Catalog], Decoder]] = {"wal2json": Wal2jsonDecoder, "pgoutput": PgoutputDecoder}
POLL_SECONDS = 0.005


async def run(bench: Bench) -> list[Comparison]:
    """One comparison a plugin that this PostgreSQL has."""
    plugins = ("wal2json", "pgoutput") if bench.endpoints.plugin == "wal2json" else ("pgoutput",)
    return [await compare(bench, plugin) for plugin in plugins]


async def compare(bench: Bench, plugin: str) -> Comparison:
    """Bound, ours, bound again; before them a run of the bound that warms the log's pages up."""
    rows = bench.size(500_000, 50_000)
    with source.database(bench.endpoints.postgres_dsn) as dsn, source.connect(dsn) as connection:
        settings = bench.settings(dsn, source.NOTES, postgres={"plugin": plugin, "snapshot": "never"})
        config = parse(settings)
        source.create_notes(connection)
        await prepare(bench, connection, settings, config)
        slots = [copy_slot(connection, config.postgres.slot, number) for number in range(3)]
        with timed(bench.tell, f"{plugin}: {rows:,} rows written"):
            source.write_notes(connection, rows, bench.seed)
        end = source.log_end(connection)
        options = decoder_options(config, connection)
        warm, first = [bound(connection, dsn, slot, options, end, rows) for slot in slots[:2]]
        bench.tell(f"{plugin}: pg_recvlogical {warm:,.0f}, then {first:,.0f} rows/s")
        ours, details = await reader(bench, connection, settings, config, rows)
        bench.tell(f"{plugin}: reader {ours:,.0f} rows/s")
        again = bound(connection, dsn, slots[2], options, end, rows)
    name = f"reader into Kafka, {plugin}"
    return Comparison(name, "pg_recvlogical -f /dev/null", "rows/s", ours, (first, again), AIM, details)


async def prepare(bench: Bench, connection: psycopg.Connection, settings: dict[str, Any], config: Config) -> None:
    """Lets the reader make slot, publication, topics and its first progress."""
    connection.execute("INSERT INTO public.notes VALUES (0, 'user-0', '', 0, now())")
    with bench.start("reader", settings) as child:
        wait_for_slot(connection, config.postgres.slot, child)
        connection.execute("INSERT INTO public.notes VALUES (-1, 'user-0', '', 0, now())")
        await topic.arrival(config, source.NOTES, 1, child.look)


def copy_slot(connection: psycopg.Connection, slot: str, number: int) -> str:
    """A slot at the same position."""
    name = f"{slot}_{number}"
    connection.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", [slot, name])
    return name


def decoder_options(config: Config, connection: psycopg.Connection) -> dict[str, str]:
    """What the reader asks the plugin for."""
    return DECODERS[config.postgres.plugin](Catalog(connection, config)).options()


def bound(connection: psycopg.Connection, dsn: str, slot: str, options: dict[str, str], end: str, rows: int) -> float:
    """Rows a second of pg_recvlogical from the slot to the end of the log."""
    parts: dict[str, Any] = conninfo_to_dict(dsn)
    password = str(parts.pop("password", ""))
    program = programs.postgres("auto").bin / "pg_recvlogical"
    command = [str(program), "--dbname", make_conninfo(**parts), "--slot", slot, "--start", "--no-loop"]
    command += ["--endpos", end, "--file", os.devnull]
    for name, value in options.items():
        command += ["--option", f"{name}={value}"]
    with Child(command, {"PGPASSWORD": password}) as child:
        started = wait_for_slot(connection, slot, child)
        while not child.ended():
            time.sleep(POLL_SECONDS)
        return rows / (time.monotonic() - started)


async def reader(
    bench: Bench, connection: psycopg.Connection, settings: dict[str, Any], config: Config, rows: int
) -> tuple[float, dict[str, float]]:
    """Rows a second of ours, and what it took."""
    spawned = time.monotonic()
    with bench.start("reader", settings) as child:
        started = wait_for_slot(connection, config.postgres.slot, child)
        idle = child.cpu_seconds()
        found = await topic.arrival(config, source.NOTES, rows, child.look)
        cpu, peak = child.cpu_seconds() - idle, child.peak_bytes()
    expected = connection.execute("SELECT count(*) FROM public.notes").fetchone()
    require(expected is not None and found.rows in (expected[0], expected[0] - 1), f"{found.rows} rows in the topic")
    seconds = found.seconds - started
    details = {
        "cpu_seconds_per_million_rows": cpu / rows * 1e6,
        "peak_mib": peak / (1 << 20),
        "startup_seconds": started - spawned,
        "seconds": seconds,
    }
    return rows / seconds, details
