"""A store that is nothing but its watermark, and what the control schema says of it."""

from __future__ import annotations

import datetime
from typing import Any

import psycopg

from cdc.control.watermarks import Watermark, record

TABLE = "public.notes"
Row = tuple[Any, ...]


class Store:
    """A store that is nothing but its watermark, an LSN up to which it has everything."""

    def __init__(self, connection: psycopg.Connection, name: str = "redis", history: str | None = None) -> None:
        self.connection, self.name, self.history = connection, name, history
        self.lsn = 0

    def now(self) -> int:
        """The end of the log."""
        return int(one(self.connection, "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")[0])

    def reach(self, lsn: int, *, complete: bool = True) -> None:
        """Says that it has everything up to there; takes a mark for later."""
        self.lsn = lsn
        position = f"{1:08x}{lsn:016x}{0:08x}"
        said = Watermark(self.name, TABLE, position, datetime.datetime.now(datetime.UTC), complete, 0, self.history)
        record(self.connection, [said])

    def follow(self) -> None:
        """Reaches everything committed now: a mark, and then a position behind it."""
        self.reach(self.lsn)
        self.reach(self.now())


def one(connection: psycopg.Connection, query: str, *parameters: Any) -> Row:
    row = connection.execute(query.encode(), parameters or None).fetchone()
    assert row is not None
    return row


def held(connection: psycopg.Connection, store: str = "redis") -> dict[int, bool]:
    """By id, whether the view says that the store has the row."""
    query = "SELECT id, stores, lacking, synced FROM cdc.notes_sync_status"
    rows = connection.execute(query).fetchall()
    assert all(set(stores).isdisjoint(lacking) for _id, stores, lacking, _synced in rows)
    assert all(synced == (stores != [] and lacking == []) for _id, stores, lacking, synced in rows)
    return {key: store in stores for key, stores, _lacking, _synced in rows}


def put(connection: psycopg.Connection, key: int) -> None:
    connection.execute(
        "INSERT INTO notes VALUES (%s, '') ON CONFLICT (id) DO UPDATE SET text = notes.text || '.'", [key]
    )
