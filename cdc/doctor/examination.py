"""All checks, in the order in which a person would mend what they find."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import closing

import psycopg

from cdc.config import Config
from cdc.doctor import broker, machine, memory, migrations, server, slots, tables
from cdc.doctor.finding import Finding, error
from cdc.errors import CdcError, GapError
from cdc.source.catalog import Catalog, SelectedTable
from cdc.source.connection import connect, connect_error


async def examine(config: Config) -> AsyncIterator[Finding]:
    """Every finding, good ones too. Raises nothing: a server that is away is a finding."""
    selected: list[SelectedTable] = []
    for finding in _source(config, selected):
        yield finding
    names = [(table.schema, table.name) for table in selected]
    try:
        async for finding in broker.check(config, names):
            yield finding
        async for finding in slots.check_progress(config):
            yield finding
    except CdcError as failed:
        yield refused("kafka", failed)
    for finding in memory.check(config):
        yield finding
    for finding in machine.check(config):
        yield finding


def refused(area: str, failed: CdcError) -> Finding:
    """An error as a finding."""
    return error(area, failed.message, failed.hint)


def _source(config: Config, selected: list[SelectedTable]) -> Iterator[Finding]:
    """The source; fills `selected`."""
    try:
        with closing(connect(config.postgres, name="memory-cdc doctor")) as connection:
            yield from server.check(connection, config)
            yield from migrations.check(connection)
            selected += Catalog(connection, config).selected_tables()
            yield from tables.check(connection, config, selected)
            yield from slots.check(connection, config, selected)
    except GapError as failed:
        yield refused("slot", failed)
    except CdcError as failed:
        yield refused("postgres", failed)
    except psycopg.Error as failed:
        yield refused("postgres", connect_error(failed))
