"""A table's rows as PostgreSQL has them now, in the same bytes as in the topics: for verify and `cdc versions`.

Keys are the topics' key bytes, rows the JSON object that stands in `after`, masks applied. A row with a masked key
cannot be found again by it, so such tables are refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec
import psycopg
from psycopg import Connection, sql

from cdc.config import Config
from cdc.errors import ConfigError, PreconditionError
from cdc.position import MAX_ORDINAL, Position
from cdc.source.catalog import Catalog
from cdc.source.connection import connect, connect_error, raw
from cdc.source.events import MESSAGE_PREFIX, NULL, Table
from cdc.source.heartbeat import HEARTBEAT

FETCH_ROWS = 1000  # a round trip: about 300 kB of small rows
_KEY = msgspec.json.Decoder(dict[str, msgspec.Raw])

Rows = list[tuple[bytes, bytes]]


class TableRows:
    """One table over one connection; `epoch` is the stream's. Fills the `Source` of consumers.verify.

    Raises PreconditionError and ConfigError for a table that cannot be compared, ConnectError."""

    def __init__(self, config: Config, schema: str, name: str, epoch: int) -> None:
        self._connection: Connection[Any] = connect(config.postgres, name="memory-cdc verify")
        try:
            catalog = Catalog(self._connection, config)
            self.table: Table = catalog.table(schema, name)
            self._texts = catalog.text_columns(self.table)
            self._keys = [self.table.columns[i] for i in self.table.key]
            self._refuse_masked()
        except BaseException:
            self._connection.close()
            raise
        self._epoch = epoch

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def _refuse_masked(self) -> None:
        for column in self._keys:
            if column.masked:
                raise PreconditionError(
                    f"the key column {column.name} of {self.table.schema}.{self.table.name} is masked, so its rows "
                    "cannot be looked up by the keys of the topics",
                    hint="verify another table, or leave the key unmasked",
                )

    # Source

    async def position(self) -> bytes:
        """Every row read so far was committed at or before it. A heartbeat follows, so that whoever waits for the
        position need not wait for the next one."""
        lsn = await asyncio.to_thread(self._one, "SELECT (pg_current_wal_insert_lsn() - '0/0')::int8")
        await asyncio.to_thread(
            self._one, "SELECT pg_logical_emit_message(true, $1, $2)", (MESSAGE_PREFIX, HEARTBEAT.decode())
        )
        return Position(self._epoch, int(lsn), MAX_ORDINAL).encode()

    async def rows(self) -> AsyncIterator[Rows]:
        """All rows of one moment, in pieces."""
        columns = sql.SQL(", ").join(self._texts)
        query = sql.SQL("DECLARE verified NO SCROLL CURSOR FOR SELECT {} FROM {}").format(columns, self._from())
        await asyncio.to_thread(self._run, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            await asyncio.to_thread(self._run, query)
            while piece := await asyncio.to_thread(self._piece, f"FETCH {FETCH_ROWS} FROM verified"):
                yield piece
        finally:
            if not self._connection.closed:
                await asyncio.to_thread(self._run, "ROLLBACK")

    async def look(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The rows of these keys now, None where there is none."""
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), FETCH_ROWS):
            found.update(await asyncio.to_thread(self._look, keys[start : start + FETCH_ROWS]))
        return [found.get(key) for key in keys]

    # one record

    def key_of(self, values: Mapping[str, str]) -> bytes:
        """The topic's key for key columns given as a person types them. Raises ConfigError."""
        names = [column.name for column in self._keys]
        if set(values) != set(names):
            raise ConfigError(
                f"the key of {self.table.schema}.{self.table.name} is {', '.join(names)}",
                hint="give " + (" ".join(f"{name}=…" for name in names) if len(names) > 1 else "its value"),
            )
        fragments = []
        for column in self._keys:
            text = self._canonical(values[column.name], column.type_name)
            fragments.append(column.codec(text.encode()))
        return self.table.key_template % tuple(fragments)

    @property
    def key_names(self) -> list[str]:
        """The key columns."""
        return [column.name for column in self._keys]

    def writer_of(self, key: bytes) -> str | None:
        """The transaction that wrote the row as it is now (xmin); None when there is no row."""
        query = sql.SQL("SELECT t.xmin::text FROM {} t{}").format(self._from(), self._join())
        found: str | None = self._one(query, self._arrays([key]))
        return found

    def _canonical(self, text: str, type_name: str) -> str:
        """As PostgreSQL writes the value."""
        try:
            query = sql.SQL("SELECT ($1::text::{})::text").format(sql.SQL(type_name))
            row = raw(self._connection).execute(query, [text]).fetchone()
        except psycopg.DataError as error:
            raise ConfigError(f"{text!r} is no {type_name}", hint="give the key as PostgreSQL shows it") from error
        return str(row[0]) if row else text

    def _look(self, keys: Sequence[bytes]) -> Rows:
        columns = sql.SQL(", ").join(self._texts)
        query = sql.SQL("SELECT {} FROM {} t{}").format(columns, self._from(), self._join())
        return self._piece(query, self._arrays(keys))

    def _join(self) -> sql.Composed:
        """Joins the wanted keys, which come as one text array a key column."""
        aliases = [sql.Identifier(f"cdc key {n}") for n in range(len(self._keys))]
        condition = sql.SQL(" AND ").join(
            sql.SQL("t.{} = k.{}::{}").format(sql.Identifier(column.name), alias, sql.SQL(column.type_name))
            for column, alias in zip(self._keys, aliases, strict=True)
        )
        arrays = sql.SQL(", ").join(sql.SQL("${}::text[]").format(n) for n in range(1, len(self._keys) + 1))
        return sql.SQL(" JOIN unnest({}) AS k({}) ON {}").format(arrays, sql.SQL(", ").join(aliases), condition)

    def _arrays(self, keys: Sequence[bytes]) -> list[list[str]]:
        decoded = [_KEY.decode(key) for key in keys]
        return [[_text(bytes(key[column.name])) for key in decoded] for column in self._keys]

    def _piece(self, query: str | sql.Composed, parameters: Sequence[Any] = ()) -> Rows:
        cursor = self._run(query, parameters)
        return [self._row(row) for row in cursor.fetchall()]

    def _row(self, texts: Sequence[str | None]) -> tuple[bytes, bytes]:
        fragments = [
            NULL if text is None else column.codec(text.encode())
            for column, text in zip(self.table.columns, texts, strict=True)
        ]
        key = self.table.key_template % tuple(fragments[i] for i in self.table.key)
        return key, b"{" + self.table.row_template % tuple(fragments) + b"}"

    def _from(self) -> sql.Composable:
        return sql.Identifier(self.table.schema, self.table.name)

    def _one(self, query: str | sql.Composed, parameters: Sequence[Any] = ()) -> Any:
        row = self._run(query, parameters).fetchone()
        return None if row is None else row[0]

    def _run(self, query: str | sql.Composed, parameters: Sequence[Any] = ()) -> psycopg.Cursor[Any]:
        try:
            cursor = raw(self._connection)
            return cursor.execute(query.encode() if isinstance(query, str) else query, parameters or None)
        except psycopg.Error as error:
            raise connect_error(error) from error


def _text(fragment: bytes) -> str:
    """A key column's fragment as PostgreSQL's text."""
    return msgspec.json.decode(fragment, type=str) if fragment[:1] == b'"' else fragment.decode()
