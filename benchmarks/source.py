"""Rows in PostgreSQL, made by SQL from a seed, in a fresh database for each benchmark."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

DIMENSION = 384  # of the usual small sentence models
ROWS_A_TRANSACTION = 100

NOTES = "public.notes"
# 8 md5 are 256 characters, with the other columns about 300 bytes a row, and no gift to the compression
_NOTES = """
CREATE TABLE public.notes (
    id bigint PRIMARY KEY, user_id text NOT NULL, content text NOT NULL, importance real,
    created_at timestamptz NOT NULL
)"""
_NOTE_ROWS = """
SELECT id, 'user-' || id % 1000,
       (SELECT string_agg(md5({seed} || ':' || id || ':' || part), '') FROM generate_series(1, 8) part),
       (id % 100) / 100.0, timestamptz '2026-01-01 00:00:00+00' + id * interval '1 second'
FROM generate_series({first}::bigint, {last}::bigint) id
"""

MEMORIES = "public.memories"
_MEMORIES = """
CREATE TABLE {name} (id bigint PRIMARY KEY, user_id text NOT NULL, content text NOT NULL, embedding real[] NOT NULL)
"""
# `id IS NOT NULL` ties the inner query to the row: else PostgreSQL would compute one vector for all
_MEMORY_ROWS = """
SELECT id, 'user-' || id % 1000, md5({seed} || ':' || id),
       (SELECT array_agg((random() * 2 - 1)::real) FROM generate_series(1, {dimension}) WHERE id IS NOT NULL)
FROM generate_series(1, {rows}::bigint) id
"""


@contextmanager
def database(dsn: str) -> Iterator[str]:
    """Makes a database, yields its dsn, and drops it with its slots."""
    name = f"bench_{secrets.token_hex(4)}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield make_conninfo(dsn, dbname=name)
        finally:
            connection.execute(
                "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots"
                " WHERE database = %s AND active_pid IS NOT NULL",
                [name],
            )
            connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s", [name]
            )
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def connect(dsn: str) -> psycopg.Connection:
    """For making data: commits need not wait for the disk, the log holds them all the same."""
    connection = psycopg.connect(dsn, autocommit=True)
    connection.execute("SET synchronous_commit = off")
    return connection


def create_notes(connection: psycopg.Connection) -> None:
    """Rows of about 300 bytes."""
    connection.execute(_NOTES)


def fill_notes(connection: psycopg.Connection, rows: int, seed: int) -> None:
    """All in one transaction: for snapshots."""
    values = sql.SQL(_NOTE_ROWS).format(first=sql.Literal(1), last=sql.Literal(rows), seed=sql.Literal(str(seed)))
    connection.execute(sql.SQL("INSERT INTO public.notes {}").format(values))
    connection.execute("VACUUM ANALYZE public.notes")


def write_notes(connection: psycopg.Connection, rows: int, seed: int) -> None:
    """In transactions of 100 rows: for the stream."""
    values = _NOTE_ROWS.format(first="batch", last=f"batch + {ROWS_A_TRANSACTION - 1}", seed=f"'{seed}'")
    connection.execute(
        f"DO $$ BEGIN FOR batch IN 1..{rows} BY {ROWS_A_TRANSACTION} LOOP"
        f" INSERT INTO public.notes {values}; COMMIT; END LOOP; END $$"
    )


def create_memories(connection: psycopg.Connection, name: str = MEMORIES) -> None:
    """Rows with a vector."""
    connection.execute(sql.SQL(_MEMORIES).format(name=sql.Identifier(*name.split("."))))


def fill_memories(connection: psycopg.Connection, rows: int, seed: int, name: str = MEMORIES) -> None:
    """Vectors of 384 random floats; the seed decides them, because one session draws them in order."""
    values = sql.SQL(_MEMORY_ROWS).format(
        seed=sql.Literal(str(seed)), dimension=sql.Literal(DIMENSION), rows=sql.Literal(rows)
    )
    connection.execute("SELECT setseed(%s)", [1 / (1 + seed)])
    connection.execute("SET max_parallel_workers_per_gather = 0")
    connection.execute(sql.SQL("INSERT INTO {} {}").format(sql.Identifier(*name.split(".")), values))
    connection.execute("VACUUM ANALYZE")


def log_end(connection: psycopg.Connection) -> str:
    """The end of the log, on the disk: a decoder sees nothing that is not flushed."""
    with connection.transaction():
        connection.execute("SET LOCAL synchronous_commit = on")
        connection.execute("SELECT pg_logical_emit_message(true, 'bench', '')")
    row = connection.execute("SELECT pg_current_wal_flush_lsn()").fetchone()
    assert row is not None
    return str(row[0])
