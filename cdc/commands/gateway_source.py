"""PostgreSQL as the gateway asks it: counts of one snapshot, single records, the newest ones.

Each question has a connection of its own, in a thread of a small pool: none waits for another's for ever, and the
server is not crowded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from cdc.commands.column_kinds import column_kinds
from cdc.commands.contents import RedisContent
from cdc.commands.gateway_keys import no_users, values_of
from cdc.commands.verify import selected
from cdc.commands.versions import versions_of
from cdc.config import Config
from cdc.envelope import decode_key
from cdc.errors import AbsentError, ConnectError
from cdc.source.catalog import Catalog, SelectedTable
from cdc.source.connection import connect, connect_error, raw
from cdc.source.events import MESSAGE_PREFIX, Table
from cdc.source.heartbeat import HEARTBEAT
from cdc.source.table_rows import TableRows
from cdc.version import decode_vector
from consumers.conditions import Kind
from consumers.gateway.parts import Counts, Memory, SourceLook
from consumers.redis import RedisStore

NAME = "memory-cdc gateway"
KINDS_SECONDS = 10.0
CONNECTIONS = 4  # at once, of the server's usual 100
_MOMENT = "SELECT extract(epoch FROM clock_timestamp())::float8, (pg_current_wal_insert_lsn() - '0/0')::int8"
_NUDGE = "SELECT (pg_logical_emit_message(true, $1, $2) - '0/0')::int8"
T = TypeVar("T")


class PostgresSource:
    """Fills consumers.gateway.parts.Source."""

    name = "postgres"

    def __init__(self, config: Config, memory: RedisStore) -> None:
        self._config = config
        self._memory = memory
        self._pool = ThreadPoolExecutor(CONNECTIONS, "source")
        self._kinds: dict[str, tuple[float, Mapping[str, Kind]]] = {}

    async def look(self) -> SourceLook:
        """Counts every selected table in one snapshot."""
        return await self._ask(self._look)

    async def ping(self) -> None:
        """Connects, and asks the clock."""
        await self._ask(lambda: self._statement(_MOMENT))

    async def ready(self) -> None:
        """Looks into the catalog."""
        await self._ask(self._ready)

    async def nudge(self) -> int:
        """A logical message needs no right on any table."""
        values = (MESSAGE_PREFIX, HEARTBEAT.decode())
        return int(await self._ask(lambda: self._statement(_NUDGE, values)))

    async def kinds(self, table: str) -> Mapping[str, Kind]:
        """As of the last `KINDS_SECONDS`: a type changes rarely. While PostgreSQL is away, as last known."""
        due, found = self._kinds.get(table, (0.0, {}))
        if time.monotonic() >= due:
            with suppress(ConnectError):  # /ready tells it
                found = await self._ask(lambda: column_kinds(self._config, table))
            self._kinds[table] = time.monotonic() + KINDS_SECONDS, found
        return found

    async def memory(self, table: str, identity: str) -> Memory | None:
        """As PostgreSQL has it now."""
        return await self._ask(lambda: self._one(table, identity))

    async def newest(self, table: str, limit: int) -> list[Memory]:
        """By the recency column, else by the key."""
        return await self._ask(lambda: self._newest(table, limit))

    async def recent(self, table: str, user: str, limit: int) -> list[Memory]:
        """As `newest`, of one user."""
        column = self._config.table(*table.split(".", 1)).user
        if column is None:
            raise no_users(table)
        return await self._ask(lambda: self._newest(table, limit, (column, user)))

    async def versions(self, table: str, identity: str) -> dict[str, Any]:
        """In a loop of its own: it asks PostgreSQL without awaiting."""
        work = versions_of(self._config, lambda names: values_of(identity, names), table)
        return await self._ask(lambda: asyncio.run(work))

    def close(self) -> None:
        """Lets running questions end."""
        self._pool.shutdown()

    async def _ask(self, question: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, question)

    def _ready(self) -> None:
        with connect(self._config.postgres, name=NAME) as connection:
            try:
                tables = Catalog(connection, self._config).selected_tables()
                [control] = connection.execute("SELECT to_regclass('cdc.jobs') IS NOT NULL").fetchone() or [False]
            except psycopg.Error as error:
                raise connect_error(error) from error
        if not tables:
            patterns = ", ".join(self._config.postgres.tables)
            raise AbsentError(f"PostgreSQL: no table matches {patterns}", hint="create the table: `cdc init`")
        if not control:
            raise AbsentError("PostgreSQL: the control schema is not there yet", hint="apply sql/: `cdc init`")

    def _look(self) -> SourceLook:
        with connect(self._config.postgres, name=NAME) as connection:
            catalog = Catalog(connection, self._config)
            tables = catalog.selected_tables()
            try:
                connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                moment = connection.execute(_MOMENT).fetchone() or (0, 0)
                counts = {f"{table.schema}.{table.name}": self._count(connection, table) for table in tables}
            except psycopg.Error as error:
                raise connect_error(error) from error
        return SourceLook(counts, float(moment[0]), int(moment[1]))

    def _count(self, connection: psycopg.Connection[Any], table: SelectedTable) -> Counts:
        vector = self._config.table(table.schema, table.name).vector
        with_vector = sql.SQL("count({})").format(sql.Identifier(vector)) if vector else sql.SQL("NULL")
        query = sql.SQL("SELECT count(*), {} FROM {}").format(with_vector, sql.Identifier(table.schema, table.name))
        records, embedded = connection.execute(query).fetchone() or (0, None)
        without = None if embedded is None else records - embedded
        return Counts(records=records, with_embeddings=embedded, without_embeddings=without)

    def _statement(self, statement: str, values: Sequence[str] = ()) -> Any:
        """The first column of the first row."""
        with connect(self._config.postgres, name=NAME) as connection:
            try:
                found = raw(connection).execute(statement.encode(), values or None).fetchone()
            except psycopg.Error as error:
                raise connect_error(error) from error
        return found[0] if found else None

    def _one(self, table: str, identity: str) -> Memory | None:
        rows = self._rows(table)
        try:
            key = rows.key_of(values_of(identity, rows.key_names))
            [row] = asyncio.run(rows.look([key]))
        finally:
            rows.close()
        return None if row is None else self._shown(table, key, row)

    def _newest(self, table: str, limit: int, having: tuple[str, str] | None = None) -> list[Memory]:
        rows = self._rows(table)
        try:
            keys = self._newest_keys(rows.table, limit, having)
            found = asyncio.run(rows.look(keys))
        finally:
            rows.close()
        return [self._shown(table, key, row) for key, row in zip(keys, found, strict=True) if row is not None]

    def _rows(self, table: str) -> TableRows:
        [(schema, name)] = selected(self._config, table)
        return TableRows(self._config, schema, name, 0)

    def _newest_keys(self, table: Table, limit: int, having: tuple[str, str] | None) -> list[bytes]:
        """Topic keys, the highest of the recency column first, else of the key; of rows that have a value in a column
        only. A value that the column cannot have has no rows."""
        columns = [table.columns[place] for place in table.key]
        names = [sql.Identifier(column.name) for column in columns]
        recency = self._config.table(table.schema, table.name).recency
        first = [sql.SQL("{} DESC NULLS LAST").format(sql.Identifier(recency))] if recency else []
        only = sql.SQL(" WHERE {} = $2").format(sql.Identifier(having[0])) if having else sql.SQL("")
        query = sql.SQL("SELECT {} FROM {}{} ORDER BY {} LIMIT $1").format(
            sql.SQL(", ").join(sql.SQL("{}::text").format(name) for name in names),
            sql.Identifier(table.schema, table.name),
            only,
            sql.SQL(", ").join([*first, *(sql.SQL("{} DESC").format(name) for name in names)]),
        )
        with connect(self._config.postgres, name=NAME) as connection:
            try:
                found = raw(connection).execute(query, [limit, *([having[1]] if having else [])]).fetchall()
            except psycopg.DataError:
                return []
            except psycopg.Error as error:
                raise connect_error(error) from error
        encoded = (tuple(c.codec(text.encode()) for c, text in zip(columns, row, strict=True)) for row in found)
        return [table.key_template % fragments for fragments in encoded]

    def _shown(self, table: str, key: bytes, row: bytes) -> Memory:
        """The columns as Redis would have them, so that a client need not know where they come from."""
        schema, name = table.split(".", 1)
        settings = self._config.table(schema, name)
        content = RedisContent(self._config, schema, name, self._memory)
        fields = {column.decode(): text for column, text in content.fields(key, row).items()}
        fields.pop(settings.vector or "", None)
        held = fields.get(settings.version_column or "")
        return Memory(
            key=decode_key(key),
            row={column: text.decode() for column, text in fields.items()},
            source=self.name,
            vector=None if held is None else decode_vector(held),
        )
