"""What is watched beside the stream: the slot's state and the tables' row counts, for metrics and alerts, and
tables that came later."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import psycopg
from psycopg import Connection, sql

from cdc.config import Config
from cdc.errors import ConnectError
from cdc.log import get
from cdc.metrics import SLOT_ACTIVE, SLOT_LOST, SLOT_RETAINED, SLOT_SAFE, SOURCE_ROWS
from cdc.source.beside import beside, opened
from cdc.source.connection import connect, connect_error
from cdc.source.definition import Definitions, changed, read_definitions
from cdc.source.relations import table_names
from cdc.source.selection import TablesChanged
from cdc.source.slot import Slot, read_slot

log = get(__name__)

SLOT_SECONDS = 5.0  # as often as Prometheus scrapes
COUNT_SHARE = 0.02  # share of the time that counting rows may take
COUNT_SECONDS = 10.0  # at most that often


def show_slot(slot: Slot) -> None:
    """Sets the slot's gauges."""
    SLOT_RETAINED.labels(slot.name).set(slot.retained_bytes)
    SLOT_ACTIVE.labels(slot.name).set(slot.active)
    SLOT_LOST.labels(slot.name).set(slot.lost)
    if slot.safe_bytes is not None:
        SLOT_SAFE.labels(slot.name).set(slot.safe_bytes)


def _count(connection: Connection, tables: Sequence[tuple[str, str]]) -> float:
    """Counts every table; returns when the next count is due (monotonic seconds)."""
    begun = time.monotonic()
    for schema, name in tables:
        row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(schema, name))).fetchone()
        SOURCE_ROWS.labels(f"{schema}.{name}").set(row[0] if row else 0)
    taken = time.monotonic() - begun
    return begun + taken + max(COUNT_SECONDS, taken / COUNT_SHARE)


def _look_for_tables(connection: Connection, config: Config, known: Sequence[tuple[str, str]]) -> None:
    found = table_names(lambda query, parameters: connection.execute(query.encode(), tuple(parameters)).fetchall())
    new = [(schema, name) for _oid, schema, name in found if config.postgres.selects(schema, name)]
    if missing := set(new) - set(known):
        names = ", ".join(sorted(".".join(name) for name in missing))
        raise TablesChanged(f"{names} came later", hint="nothing: it is taken in now")


async def watch_slot(config: Config) -> None:
    """For ever, for a reader that does not read: the WAL its slot holds back goes on growing. A server that is away is
    waited for."""
    while True:
        try:
            async with opened(connect, config.postgres, name="memory-cdc watch") as connection:
                while True:
                    slot = await beside(read_slot, connection, config.postgres.slot)
                    if slot is not None:
                        show_slot(slot)
                    await asyncio.sleep(SLOT_SECONDS)
        except (psycopg.Error, ConnectError) as error:
            log.warning("the slot cannot be watched", reason=type(error).__name__)
        await asyncio.sleep(SLOT_SECONDS)


def _look_for_ddl(
    connection: Connection, config: Config, tables: Sequence[tuple[str, str]], known: Definitions
) -> None:
    found = changed(known, read_definitions(connection, config.postgres, tables))
    if found:
        raise TablesChanged(f"{', '.join(found)} changed", hint="nothing: it is read again")


async def watch(config: Config, tables: Sequence[tuple[str, str]], definitions: Definitions) -> None:
    """For ever. Raises ConnectError when the source is away, TablesChanged when a table came or is another now."""
    due = 0.0
    async with opened(connect, config.postgres, name="memory-cdc watch") as connection:
        try:
            while True:
                slot = await beside(read_slot, connection, config.postgres.slot)
                if slot is not None:
                    show_slot(slot)
                await beside(_look_for_tables, connection, config, tables)
                await beside(_look_for_ddl, connection, config, tables, definitions)
                if time.monotonic() >= due:
                    due = await beside(_count, connection, tables)
                await asyncio.sleep(SLOT_SECONDS)
        except psycopg.Error as error:
            raise connect_error(error) from error
