"""Filling what the plugin did not send, by a batched re-select by key.

Two cases: an unchanged TOAST column of a table without REPLICA IDENTITY FULL, and wal2json's null for a float or
numeric that may be NaN or ±Infinity. The value read is the present one: it may be newer than the event, then the newer
event is still to come in the stream and the stores end equal. A row that is gone by now gets NULLs: its delete is still
to come. It is never older: what the stream delivered is waited for until a SELECT sees it (visibility.py).
Filled columns are named in `source.filled` and counted.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
import psycopg
from psycopg import Connection, sql

from cdc.metrics import READER_FILLED
from cdc.source.connection import connect_error, raw
from cdc.source.events import NULL, UNCHANGED, Column, Fragment, Mark, Table
from cdc.source.rows import Envelope
from cdc.source.visibility import await_visible

_BYTEA = 17  # oid; its wire form is base64, its text is not
BATCH = 1000  # keys a query: about 100 kB of SQL parameters


@dataclass(slots=True)
class Hole:
    """A record that waits for values: where it stands in its topic's list, and all that makes its bytes."""

    topic: str
    index: int
    envelope: Envelope
    op: bytes
    ordinal: int
    row: list[Fragment]
    filled: list[int] = field(default_factory=list)

    @property
    def missing(self) -> list[int]:
        """Indexes of the columns to fill."""
        return [i for i, fragment in enumerate(self.row) if isinstance(fragment, Mark)]


def has_hole(row: Iterable[Fragment]) -> bool:
    """True when a fragment is a mark."""
    return any(fragment.__class__ is Mark for fragment in row)


def fill(connection: Connection, holes: Sequence[Hole], columns: Callable[[Table], list[sql.Composable]]) -> None:
    """Replaces every mark in the holes' rows. `columns` gives the text expression of each column of a Table, of which
    DDL makes several of one name. Raises ConnectError."""
    await_visible(connection, {hole.envelope.xid for hole in holes})
    groups: dict[int, list[Hole]] = {}
    for hole in holes:
        groups.setdefault(id(hole.envelope.table), []).append(hole)
    for group in groups.values():
        table = group[0].envelope.table
        expressions = columns(table)
        for start in range(0, len(group), BATCH):
            _fill_group(connection, table, group[start : start + BATCH], expressions)


def _fill_group(connection: Connection, table: Table, holes: Sequence[Hole], expressions: list[sql.Composable]) -> None:
    wanted = sorted({i for hole in holes for i in hole.missing})
    found = _select(connection, table, holes, wanted, expressions)
    for hole in holes:
        row = found.get(hole.envelope.key(hole.row))
        hole.filled = hole.missing
        for i in hole.filled:
            reason = "toast" if hole.row[i] is UNCHANGED else "non-finite"
            READER_FILLED.labels(f"{table.schema}.{table.name}", reason).inc()
            hole.row[i] = NULL if row is None else row[i]


def _select(
    connection: Connection, table: Table, holes: Sequence[Hole], wanted: list[int], expressions: list[sql.Composable]
) -> dict[bytes, dict[int, bytes]]:
    """Key bytes → column index → fragment."""
    arrays = [[_key_text(table.columns[i], hole.row[i]) for hole in holes] for i in table.key]
    try:
        try:
            rows = raw(connection).execute(_query(table, wanted, expressions, renamed=False), arrays).fetchall()
        except psycopg.errors.UndefinedColumn:
            rows = raw(connection).execute(_query(table, wanted, expressions, renamed=True), arrays).fetchall()
    except psycopg.errors.UndefinedTable:
        return {}  # dropped or renamed meanwhile: under this name no rows are left
    except psycopg.Error as error:
        raise connect_error(error) from error
    return dict(_fragments(table, wanted, row) for row in rows)


def _query(table: Table, wanted: list[int], expressions: list[sql.Composable], *, renamed: bool) -> sql.Composed:
    """By the key's columns; once they are `renamed`, by the text of what they are called now, without their index."""
    aliases = [sql.Identifier(f"cdc key {n}") for n in range(len(table.key))]
    conditions: list[sql.Composable] = []
    for alias, i in zip(aliases, table.key, strict=True):
        column = table.columns[i]
        if renamed:
            conditions.append(sql.SQL("{} = k.{}").format(expressions[i], alias))
        else:
            parts = sql.Identifier(column.name), alias, _raw(column.type_name)
            conditions.append(sql.SQL("t.{} = k.{}::{}").format(*parts))
    return sql.SQL("SELECT {} FROM unnest({}) AS k({}) JOIN {} t ON {}").format(
        sql.SQL(", ").join([expressions[i] for i in (*table.key, *wanted)]),
        sql.SQL(", ").join(sql.SQL("${}::text[]").format(n) for n in range(1, len(aliases) + 1)),
        sql.SQL(", ").join(aliases),
        sql.Identifier(table.schema, table.name),
        sql.SQL(" AND ").join(conditions),
    )


def _fragments(table: Table, wanted: list[int], row: Sequence[str | None]) -> tuple[bytes, dict[int, bytes]]:
    def encode(i: int, text: str | None) -> bytes:
        return NULL if text is None else table.columns[i].codec(text.encode())

    count = len(table.key)
    key = table.key_template % tuple(encode(i, text) for i, text in zip(table.key, row[:count], strict=True))
    return key, {i: encode(i, text) for i, text in zip(wanted, row[count:], strict=True)}


def _key_text(column: Column, fragment: Fragment) -> str:
    """PostgreSQL's text of a key column's fragment: a JSON string's content, or the JSON literal itself."""
    value = bytes(fragment)
    text = msgspec.json.decode(value, type=str) if value[:1] == b'"' else value.decode()
    return "\\x" + base64.b64decode(text).hex() if column.type_oid == _BYTEA else text


def _raw(type_name: str) -> sql.SQL:
    """format_type's own output: already quoted by the server."""
    return sql.SQL(type_name)
