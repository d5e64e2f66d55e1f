"""Rows in PostgreSQL, made by SQL from a seed, in a fresh database for each benchmark."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

DIMENSION = 384  # of the usual small sentence models
SMALL, USUAL, LARGE = 2, 8, 49  # md5 sums of 32 characters: rows of about 100 bytes, 300 bytes and 1.6 kB

NOTES = "public.notes"
_NOTES = """
CREATE TABLE public.notes (
    id bigint PRIMARY KEY, user_id text NOT NULL, content text NOT NULL, importance real,
    created_at timestamptz NOT NULL{embedding}
)"""
# md5 sums are no gift to the compression; `id IS NOT NULL` ties a vector to its row: else all would get the same one
_NOTE_ROWS = """
SELECT id, 'user-' || id % 1000,
       (SELECT string_agg(md5({seed} || ':' || id || ':' || part), '') FROM generate_series(1, {sums}) part),
       (id % 100) / 100.0, timestamptz '2026-01-01 00:00:00+00' + id * interval '1 second'{embedding}
FROM generate_series({first}, {last}) id
"""
_VECTOR = f"(SELECT array_agg((random() * 2 - 1)::real) FROM generate_series(1, {DIMENSION}) WHERE id IS NOT NULL)"

MEMORIES = "public.memories"
_MEMORIES = """
CREATE TABLE {name} (id bigint PRIMARY KEY, user_id text NOT NULL, content text NOT NULL, embedding real[] NOT NULL)
"""
_MEMORY_ROWS = f"""
SELECT id, 'user-' || id % 1000, md5({{seed}} || ':' || id), {_VECTOR}
FROM generate_series(1, {{rows}}::bigint) id
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


@dataclass(frozen=True)
class Load:
    """Changes of `public.notes`: how many, of which rows, in which transactions, by how many writers at once; ids
    follow `after`.

    `mixed`: of each ten changes six are inserts, three updates and one a delete; by one writer, 10·n a transaction.
    """

    name: str
    changes: int
    sums: int = USUAL
    vector: bool = False
    mixed: bool = False
    transaction: int = 100
    writers: int = 1
    after: int = 0

    @property
    def deletes(self) -> int:
        """Of all changes."""
        return self.changes // 10 if self.mixed else 0

    @property
    def inserts(self) -> int:
        """Of a transaction."""
        return self.transaction * 6 // 10 if self.mixed else self.transaction


def create_notes(connection: psycopg.Connection, *, vector: bool = False) -> None:
    """An empty table; with `vector` a column more."""
    connection.execute(_NOTES.format(embedding=", embedding real[] NOT NULL" if vector else ""))


def fill_notes(connection: psycopg.Connection, rows: int, seed: int, sums: int = USUAL) -> None:
    """All in one transaction: for snapshots."""
    connection.execute(f"INSERT INTO public.notes {_rows('1', str(rows), seed, Load('', rows, sums))}")
    connection.execute("VACUUM ANALYZE public.notes")


def prepare_notes(connection: psycopg.Connection, load: Load, seed: int) -> None:
    """The table, and what the first transaction of mixed changes updates and deletes; to be done before a slot is."""
    create_notes(connection, vector=load.vector)
    if load.mixed:
        connection.execute(f"INSERT INTO public.notes {_rows(str(1 - load.inserts), '0', seed, load)}")


def stage(connection: psycopg.Connection, first: int, rows: int, seed: int, load: Load) -> None:
    """Fills `public.notes_staged` with rows that follow `first`, ready to be moved; nothing of it is in the log."""
    connection.execute("DROP TABLE IF EXISTS public.notes_staged")
    connection.execute("CREATE UNLOGGED TABLE public.notes_staged (LIKE public.notes INCLUDING INDEXES)")
    connection.execute("SELECT setseed(%s)", [1 / (1 + seed)])
    connection.execute(f"INSERT INTO public.notes_staged {_rows(str(first + 1), str(first + rows), seed, load)}")
    connection.execute("ANALYZE public.notes_staged")


def write_notes(dsn: str, load: Load, seed: int) -> None:
    """Makes the changes, into the log, for the stream."""
    number = load.changes // load.transaction
    shares = [range(n * number // load.writers, (n + 1) * number // load.writers) for n in range(load.writers)]
    with ThreadPoolExecutor(load.writers) as pool:
        for done in [pool.submit(_write, dsn, load, share, seed) for share in shares]:
            done.result()


def _write(dsn: str, load: Load, share: range, seed: int) -> None:
    """The transactions of one writer; those of mixed changes touch rows of the transaction before."""
    inserts, updates, deletes = load.inserts, load.transaction * 3 // 10, load.transaction // 10
    here = f"{load.after} + t::bigint * {inserts}"
    steps = [f"INSERT INTO public.notes {_rows(f'{here} + 1', f'{here} + {inserts}', seed, load)}"]
    if load.mixed:
        steps.append(
            f"UPDATE public.notes SET content = reverse(content) WHERE id > {here} - {updates} AND id <= {here}"
        )
        steps.append(f"DELETE FROM public.notes WHERE id > {here} - {inserts} AND id <= {here} - {inserts - deletes}")
    with connect(dsn) as connection:
        connection.execute("SELECT setseed(%s)", [1 / (1 + seed)])
        connection.execute(
            f"DO $$ BEGIN FOR t IN {share.start}..{share.stop - 1} LOOP {'; '.join(steps)}; COMMIT; END LOOP; END $$"
        )


def _rows(first: str, last: str, seed: int, load: Load) -> str:
    embedding = f", {_VECTOR}" if load.vector else ""
    return _NOTE_ROWS.format(
        first=f"({first})::bigint", last=f"({last})::bigint", seed=f"'{seed}'", sums=load.sums, embedding=embedding
    )


def create_memories(connection: psycopg.Connection, name: str = MEMORIES) -> None:
    """Rows with a vector."""
    connection.execute(sql.SQL(_MEMORIES).format(name=sql.Identifier(*name.split("."))))


def fill_memories(connection: psycopg.Connection, rows: int, seed: int, name: str = MEMORIES) -> None:
    """Vectors of 384 random floats; the seed decides them, because one session draws them in order."""
    values = sql.SQL(_MEMORY_ROWS).format(seed=sql.Literal(str(seed)), rows=sql.Literal(rows))
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
