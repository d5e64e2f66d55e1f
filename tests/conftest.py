"""Real servers for all tests: one PostgreSQL, Kafka and Redis a session, another PostgreSQL when a test asks for it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import hypothesis
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cdc.embedded import Endpoints, Servers
from tests.chance import GIVEN

hypothesis.settings.register_profile("repeated", derandomize=True)
if GIVEN != "random":
    hypothesis.settings.load_profile("repeated")


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    """PostgreSQL, Kafka and Redis of the system's own packages; wheels where it has none."""
    own = Servers(tmp_path_factory.mktemp("servers"), report=print)
    try:
        yield own.start()
    finally:
        own.erase()


@pytest.fixture(scope="session")
def pg18(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dsn of a PostgreSQL 18 with pgvector, which has no wal2json."""
    own = Servers(tmp_path_factory.mktemp("pg18"), only=("postgres",), provider="wheels", report=print)
    try:
        yield own.start().postgres_dsn
    finally:
        own.erase()


@pytest.fixture(scope="module")
def database(servers: Endpoints) -> Iterator[str]:
    """The dsn of a fresh database of this test module; dropped with its slots afterwards."""
    with fresh_database(servers.postgres_dsn) as dsn:
        yield dsn


@pytest.fixture
def dsn(servers: Endpoints) -> Iterator[str]:
    """The dsn of a fresh database of this test's own; dropped with its slots afterwards."""
    with fresh_database(servers.postgres_dsn) as made:
        yield made


@pytest.fixture(scope="module")
def database18(pg18: str) -> Iterator[str]:
    """The same on PostgreSQL 18 with pgvector."""
    with fresh_database(pg18) as dsn:
        yield dsn


@contextmanager
def fresh_database(dsn: str) -> Iterator[str]:
    """Makes a database with a random name and drops it with all its slots; yields its dsn."""
    name = f"test_{secrets.token_hex(6)}"
    identifier = sql.Identifier(name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
        try:
            yield make_conninfo(dsn, dbname=name)
        finally:
            drop_slots(connection, name)
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


def drop_slots(connection: psycopg.Connection, database: str) -> None:
    """Ends the walsenders of a database and drops its slots."""
    for (slot,) in connection.execute(
        "SELECT slot_name FROM pg_replication_slots WHERE database = %s", [database]
    ).fetchall():
        connection.execute(
            "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots"
            " WHERE slot_name = %s AND active_pid IS NOT NULL",
            [slot],
        )
        connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
