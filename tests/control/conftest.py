"""A database with the control schema and a tracked table, and a store that is nothing but its watermark."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest

from cdc.migrations import migrate
from tests.control.sync_status import Store


@pytest.fixture
def connect(database: str) -> Iterator[Callable[[], psycopg.Connection]]:
    """Connections to a database with an empty control schema and a tracked table `notes`; closed afterwards."""
    migrate(database)
    made: list[psycopg.Connection] = []

    def connect() -> psycopg.Connection:
        made.append(psycopg.connect(database, autocommit=True))
        return made[-1]

    connect().execute("TRUNCATE cdc.watermarks, cdc.marks, cdc.letters; DROP TABLE IF EXISTS notes")
    made[0].execute("CREATE TABLE notes (id integer PRIMARY KEY, text text)")
    made[0].execute("SELECT cdc.track('public.notes')")
    yield connect
    for connection in made:
        connection.close()


@pytest.fixture
def store(connect: Callable[[], psycopg.Connection]) -> Store:
    return Store(connect())
