"""Which stores have which row, across the wrap of transaction ids: a server of its own, set to just before it."""

from __future__ import annotations

import datetime
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import psycopg
import pytest
from psycopg import Connection

from cdc.control.watermarks import Watermark, record
from cdc.embedded import Servers
from cdc.embedded.postgres import Postgres
from cdc.migrations import migrate

TABLE = "public.notes"
EPOCH, WRAP = 5, 1 << 32
SEGMENT_IDS = 1 << 20  # of a file of pg_xact: 256 KiB, two bits each
PREPARE = {"max_prepared_transactions": "2", "autovacuum": "off"}


@pytest.fixture(scope="module")
def dsn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database with a tracked table `notes` of one frozen row of epoch 0; the next transactions wrap."""
    own = Servers(tmp_path_factory.mktemp("wrap"), only=("postgres",), report=print, settings={"postgres": PREPARE})
    try:
        dsn = own.start().postgres_dsn
        migrate(dsn)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE notes (id integer PRIMARY KEY); SELECT cdc.track('public.notes')")
            connection.execute("INSERT INTO notes VALUES (1)")
            connection.execute("UPDATE pg_database SET datallowconn = true")
            names = [name for (name,) in connection.execute("SELECT datname FROM pg_database")]
        for name in names:
            with psycopg.connect(dsn, dbname=name, autocommit=True) as connection:
                connection.execute("VACUUM FREEZE")
        own.stop()
        _set_back(cast(Postgres, own["postgres"]))
        yield own.start().postgres_dsn
    finally:
        own.erase()


def _set_back(server: Postgres) -> None:
    """The next id is ten before the wrap (manual, pg_resetwal)."""
    segment = server.data / "pg_xact" / f"{(WRAP - 1) // SEGMENT_IDS:04X}"
    segment.write_bytes(bytes(SEGMENT_IDS // 4))
    program: Path = server.program.bin / "pg_resetwal"
    command = [str(program), "--epoch", str(EPOCH), "--next-transaction-id", str(WRAP - 10), str(server.data)]
    account = server.account
    if account is None:
        subprocess.run(command, check=True)
    else:
        os.chown(segment, account.uid, account.gid)
        subprocess.run(command, check=True, user=account.uid, group=account.gid)


def follow(connection: Connection) -> None:
    """The store has everything committed now: a mark, and then a position behind it."""
    for _ in range(2):
        row = connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone()
        assert row is not None
        position = f"{1:08x}{row[0]:016x}{0:08x}"
        record(connection, [Watermark("redis", TABLE, position, datetime.datetime.now(datetime.UTC), True)])


def held(connection: Connection) -> dict[int, bool]:
    query = "SELECT id, synced FROM cdc.notes_sync_status ORDER BY id"
    return dict(connection.execute(query))


def test_across_the_wrap(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection, psycopg.connect(dsn, autocommit=True) as running:
        follow(connection)
        assert held(connection) == {1: True}
        running.execute("BEGIN; INSERT INTO notes VALUES (100); SAVEPOINT a; INSERT INTO notes VALUES (101)")
        for key in range(2, 8):
            connection.execute("INSERT INTO notes VALUES (%s)", [key])
            assert held(connection) == {**dict.fromkeys(range(1, key), True), key: False}
            follow(connection)
            assert set(held(connection).values()) == {True}
        ids = [int(xid) for (xid,) in connection.execute("SELECT xid::text FROM cdc.notes_sync_status WHERE id > 1")]
        assert min(ids) < (EPOCH + 1) * WRAP < max(ids)  # it wrapped in between
        running.execute("COMMIT")
        assert not any(held(connection)[key] for key in (100, 101))
        follow(connection)
        assert set(held(connection).values()) == {True}


def test_prepared_transactions(dsn: str) -> None:
    """They run on without a connection."""
    with psycopg.connect(dsn, autocommit=True) as connection, psycopg.connect(dsn, autocommit=True) as other:
        other.execute("BEGIN; INSERT INTO notes VALUES (200); SAVEPOINT a; INSERT INTO notes VALUES (201)")
        other.execute("PREPARE TRANSACTION 'p'")
        other.execute("INSERT INTO notes VALUES (202)")
        follow(connection)
        assert held(connection)[202]
        other.execute("COMMIT PREPARED 'p'")
        assert not any(held(connection)[key] for key in (200, 201))
        follow(connection)
        assert set(held(connection).values()) == {True}
