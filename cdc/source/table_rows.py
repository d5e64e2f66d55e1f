"""A table's rows as PostgreSQL has them now, in the same bytes as in the topics: for verify and `cdc versions`.

Keys are the topics' key bytes, rows the JSON object that stands in `after`, masks applied. A row with a masked key
cannot be found again by it, so such tables are refused.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import psycopg
from psycopg import Connection, pq, sql

from cdc.config import Config
from cdc.errors import ConfigError, PreconditionError
from cdc.position import MAX_ORDINAL, Position
from cdc.source.beside import beside, opened
from cdc.source.binary_vectors import binary_codec
from cdc.source.catalog import Catalog
from cdc.source.connection import connect, connect_error, raw
from cdc.source.events import MESSAGE_PREFIX, Table
from cdc.source.heartbeat import HEARTBEAT
from cdc.source.layout import part_of
from cdc.source.runs import Packed, result_reader

FIRST_ROWS = 500  # of the first round trip, before it is known how wide rows are
FETCH_ROWS = 5000  # of any other, at most
FETCH_BYTES = 8 << 20  # about so much a round trip
NAME = "memory-cdc verify"
_KEY = msgspec.json.Decoder(dict[str, msgspec.Raw])

Rows = list[tuple[bytes, bytes]]


class TableRows:
    """One table; `epoch` is the stream's. Fills the `Source` of consumers.verify.

    With `columns` rows are made of these and the key only, and the vector is read in binary (one with NULLs may then be
    another JSON text). With `sample` `rows` gives about so many, chosen at random: a `share` of all.
    Raises PreconditionError and ConfigError for a table that cannot be compared, ConnectError."""

    def __init__(
        self,
        config: Config,
        schema: str,
        name: str,
        epoch: int,
        *,
        columns: Collection[str] | None = None,
        sample: int | None = None,
    ) -> None:
        self._config = config
        self._connection: Connection[Any] = connect(config.postgres, name=NAME)
        try:
            catalog = Catalog(self._connection, config)
            whole = catalog.table(schema, name)
            texts = catalog.text_columns(whole)
            _refuse_masked(whole)
            if columns is not None:
                whole, texts = _with_binary_vector(whole, texts, config, catalog)
        except BaseException:
            self._connection.close()
            raise
        self.table: Table = whole if columns is None else part_of(whole, columns)
        named = dict(zip((column.name for column in whole.columns), texts, strict=True))
        self._texts = [named[column.name] for column in self.table.columns]
        self._keys = [self.table.columns[i] for i in self.table.key]
        self._decode = result_reader(self.table)
        self._epoch, self._sample = epoch, sample
        self.share = 1.0
        self.total: int | None = None  # rows that `rows` will give, as far as PostgreSQL knows without counting

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    # Source

    async def position(self) -> bytes:
        """Every row read so far was committed at or before it. A heartbeat follows, so that whoever waits for the
        position need not wait for the next one."""
        return await beside(self._position)

    async def rows(self) -> AsyncIterator[Rows]:
        """All rows of one moment, which has come when the first piece does, in pieces; or a `share` of them."""
        async with opened(connect, self._config.postgres, name=NAME) as connection:
            await beside(self._begin, connection)
            limit = FIRST_ROWS
            while piece := await beside(self._fetch, connection, limit):
                yield [(key, b"{" + body + b"}") for key, body, _version in piece]
                limit = self._next(piece)

    async def look(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The rows of these keys now, None where there is none."""
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), FETCH_ROWS):
            found.update(await beside(self._look, keys[start : start + FETCH_ROWS]))
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

    def _position(self) -> bytes:
        lsn = self._one("SELECT (pg_current_wal_insert_lsn() - '0/0')::int8")
        self._one("SELECT pg_logical_emit_message(true, $1, $2)", (MESSAGE_PREFIX, HEARTBEAT.decode()))
        return Position(self._epoch, int(lsn), MAX_ORDINAL).encode()

    def _begin(self, connection: Connection[Any]) -> None:
        """Opens the cursor, and with it the moment."""
        _run(connection, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        part: sql.Composable = sql.SQL("")
        if self._sample is None:
            estimate = "SELECT reltuples::int8 FROM pg_class WHERE oid = $1::text::regclass AND reltuples > 0"
            found = _run(connection, estimate, [self._from().as_string(connection)]).fetchone()
            self.total = found[0] if found else None
        else:
            found = _run(connection, sql.SQL("SELECT count(*) FROM {}").format(self._from())).fetchone()
            self.total = min(self._sample, found[0] if found else 0)
            self.share = min(1.0, self._sample / max(1, found[0] if found else 0))
            part = sql.SQL(" TABLESAMPLE BERNOULLI ({})").format(sql.Literal(100 * self.share))
        columns = sql.SQL(", ").join(self._texts)
        query = sql.SQL("DECLARE verified NO SCROLL CURSOR FOR SELECT {} FROM {}{}")
        _run(connection, query.format(columns, self._from(), part))

    def _fetch(self, connection: Connection[Any], rows: int) -> list[Packed]:
        return self._packed(_run(connection, f"FETCH {rows} FROM verified", binary=True).pgresult)

    @staticmethod
    def _next(piece: Sequence[Packed]) -> int:
        """How many rows to fetch behind these."""
        size = sum(len(body) for _key, body, _version in piece) // len(piece)
        return max(1, min(FETCH_ROWS, FETCH_BYTES // max(1, size)))

    def _look(self, keys: Sequence[bytes]) -> Rows:
        columns = sql.SQL(", ").join(self._texts)
        query = sql.SQL("SELECT {} FROM {} t{}").format(columns, self._from(), self._join())
        found = self._packed(_run(self._connection, query, self._arrays(keys), binary=True).pgresult)
        return [(key, b"{" + body + b"}") for key, body, _version in found]

    def _packed(self, result: pq.abc.PGresult | None) -> list[Packed]:
        rows: list[Packed] = []
        if result is not None and result.ntuples:
            self._decode(result.get_value, result.ntuples, rows)
        return rows

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

    def _from(self) -> sql.Composable:
        return sql.Identifier(self.table.schema, self.table.name)

    def _one(self, query: str | sql.Composed, parameters: Sequence[Any] = ()) -> Any:
        row = _run(self._connection, query, parameters).fetchone()
        return None if row is None else row[0]


def _run(
    connection: Connection[Any], query: str | sql.Composed, parameters: Sequence[Any] = (), *, binary: bool = False
) -> psycopg.Cursor[Any]:
    """Text is the same in binary."""
    try:
        statement = query.encode() if isinstance(query, str) else query
        return raw(connection).execute(statement, parameters or None, binary=binary)
    except psycopg.Error as error:
        raise connect_error(error) from error


def _with_binary_vector(
    table: Table, texts: list[sql.Composable], config: Config, catalog: Catalog
) -> tuple[Table, list[sql.Composable]]:
    """The table and what to select for its columns, the vector as it is where its binary form is known."""
    name = config.table(table.schema, table.name).vector
    columns, selected = list(table.columns), list(texts)
    for place, column in enumerate(columns):
        codec = binary_codec(catalog.type_of(column.type_oid)) if column.name == name and not column.masked else None
        if codec is not None:
            columns[place] = replace(column, codec=codec)
            selected[place] = sql.Identifier(column.name)
    return replace(table, columns=tuple(columns)), selected


def _refuse_masked(table: Table) -> None:
    for column in (table.columns[i] for i in table.key):
        if column.masked:
            raise PreconditionError(
                f"the key column {column.name} of {table.schema}.{table.name} is masked, so its rows cannot be looked "
                "up by the keys of the topics",
                hint="verify another table, or leave the key unmasked",
            )


def _text(fragment: bytes) -> str:
    """A key column's fragment as PostgreSQL's text."""
    return msgspec.json.decode(fragment, type=str) if fragment[:1] == b'"' else fragment.decode()
