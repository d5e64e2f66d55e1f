"""The slot, the publication, and whether progress and slot agree."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing

import psycopg
from psycopg import Connection, sql

from cdc.config import Config
from cdc.doctor.finding import Finding, error, ok, warning
from cdc.errors import ConnectError, GapError, PreconditionError
from cdc.kafka.progress import read_progress
from cdc.position import format_lsn
from cdc.source.catalog import SelectedTable
from cdc.source.connection import connect
from cdc.source.history import check_history, read_history
from cdc.source.slot import check_gap, read_slot
from cdc.source.stream import identify

AREA = "slot"
LOW_SHARE = 0.2  # of the WAL a slot may hold back: below it there is little time left


def check(connection: Connection, config: Config, selected: Sequence[SelectedTable]) -> Iterator[Finding]:
    """Raises psycopg.Error."""
    yield from _slot(connection, config)
    if config.postgres.plugin == "pgoutput":
        yield from _publication(connection, config, selected)


def _slot(connection: Connection, config: Config) -> Iterator[Finding]:
    slot = read_slot(connection, config.postgres.slot)
    if slot is None:
        yield ok(AREA, f"slot {config.postgres.slot} is not there yet; the first reader makes it")
        return
    if slot.database != connection.info.dbname:
        yield error(
            AREA,
            f"slot {slot.name} belongs to the database {slot.database}",
            "set [postgres] slot to another name, or dsn to that database",
        )
    elif slot.lost:
        yield error(AREA, f"slot {slot.name} was invalidated by the server: its WAL is gone", "run `cdc resync`")
    elif slot.safe_bytes is not None and slot.safe_bytes < LOW_SHARE * (slot.safe_bytes + slot.retained_bytes):
        yield warning(
            AREA,
            f"slot {slot.name} holds back {slot.retained_bytes >> 20} MiB of WAL and is lost after "
            f"{slot.safe_bytes >> 20} MiB more",
            "start the reader, or raise max_slot_wal_keep_size",
        )
    else:
        state = "a reader is connected" if slot.active else "no reader is connected"
        yield ok(AREA, f"slot {slot.name} stands at {format_lsn(slot.confirmed_lsn)}, {state}")


def _publication(connection: Connection, config: Config, selected: Sequence[SelectedTable]) -> Iterator[Finding]:
    name = config.postgres.publication
    found = connection.execute(
        "SELECT pubviaroot, pubinsert AND pubupdate AND pubdelete AND pubtruncate FROM pg_publication "
        "WHERE pubname = %s",
        [name],
    ).fetchone()
    quoted = sql.Identifier(name).as_string(connection)
    if found is None:
        yield from _may_publish(connection, config, selected)
        return
    if found[0] and any(table.is_partitioned for table in selected):
        remedy = f"ALTER PUBLICATION {quoted} SET (publish_via_partition_root = false)"
        yield error(AREA, f"publication {name} hides the TRUNCATE of single partitions", remedy)
    if not found[1]:
        remedy = f"ALTER PUBLICATION {quoted} SET (publish = 'insert, update, delete, truncate')"
        yield error(AREA, f"publication {name} leaves out some kinds of changes", remedy)
    rows = connection.execute("SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = %s", [name])
    published = set(rows.fetchall())
    missing = [table for table in selected if not _parts(table) <= published]
    for table in missing:
        target = sql.Identifier(table.schema, table.name).as_string(connection)
        yield warning(
            AREA,
            f"{table.schema}.{table.name} is not in the publication {name}; the reader adds it if it may",
            f"ALTER PUBLICATION {quoted} ADD TABLE {target}",
        )
    if not missing:
        yield ok(AREA, f"publication {name} has every table")


def _parts(table: SelectedTable) -> set[tuple[str, str]]:
    """What a publication lists of a table: the partitions, not their root."""
    return {(schema, name) for _oid, schema, name in table.leaves} or {(table.schema, table.name)}


def _may_publish(connection: Connection, config: Config, selected: Sequence[SelectedTable]) -> Iterator[Finding]:
    name = config.postgres.publication
    row = connection.execute(
        "SELECT has_database_privilege(current_database(), 'CREATE'), "
        "(SELECT coalesce(bool_and(pg_has_role(relowner, 'USAGE')), true) FROM pg_class WHERE oid = ANY(%s))",
        [[table.oid for table in selected]],
    ).fetchone()
    if row and all(row):
        yield ok(AREA, f"publication {name} is not there yet; the first reader makes it")
        return
    tables = sql.SQL(", ").join(sql.Identifier(table.schema, table.name) for table in selected).as_string(connection)
    yield error(
        AREA,
        f"publication {name} is not there, and this role may not make it",
        f"as the tables' owner: CREATE PUBLICATION {sql.Identifier(name).as_string(connection)} FOR TABLE {tables} "
        "WITH (publish_via_partition_root = false)",
    )


async def check_progress(config: Config) -> AsyncIterator[Finding]:
    """Whether changes between progress and slot are lost; nothing when PostgreSQL is away, which was said before.
    Raises ConnectError for Kafka."""
    try:
        system = await asyncio.to_thread(identify, config.postgres)
        with closing(connect(config.postgres, name="memory-cdc doctor")) as connection:
            slot = read_slot(connection, config.postgres.slot)
    except (ConnectError, PreconditionError, psycopg.Error):
        return
    progress = await read_progress(config)  # after the slot, which a reader at work moves up to progress meanwhile
    try:
        with closing(connect(config.postgres, name="memory-cdc doctor")) as connection:
            history = read_history(connection)  # after progress, which the server is ahead of
    except (ConnectError, psycopg.Error):
        return
    try:
        check_gap(slot, progress, system, config.postgres)
        check_history(history, progress)
    except (GapError, PreconditionError) as failed:
        yield error(AREA, failed.message, failed.hint)
        return
    if progress is None:
        yield ok(AREA, "no progress yet: the first reader begins with snapshots")
    else:
        yield ok(
            AREA, f"progress stands at {format_lsn(progress.end_lsn)}, and nothing is lost between it and the slot"
        )
