"""Both plugins over one database: a slot for each, decoders that live on between reads, as in a running reader."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import sql

from cdc.config import Config, parse
from cdc.source.catalog import Catalog
from cdc.source.connection import connect
from cdc.source.events import NULL, UNKNOWN, Begin, Commit, Decoder, Event, Message, Row, Table, Truncate
from cdc.source.pgoutput import PgoutputDecoder
from cdc.source.wal2json import Wal2jsonDecoder

PLUGINS = ("wal2json", "pgoutput")
NONFINITE = (NULL, b'"NaN"', b'"Infinity"', b'"-Infinity"')


class Decoding:
    """Slots and decoders. `via_root` is the publication's publish_via_partition_root."""

    def __init__(
        self, dsn: str, *, plugins: tuple[str, ...] = PLUGINS, via_root: bool = False, **settings: Any
    ) -> None:
        self.token = secrets.token_hex(6)
        self.publication = f"p_{self.token}"
        postgres = {"dsn": dsn, "tables": ["public.*"], "publication": self.publication} | settings.pop("postgres", {})
        self.config: Config = parse({"postgres": postgres, "kafka": {"bootstrap": "none"}, **settings})
        self.connection = connect(self.config.postgres)
        root = sql.SQL("true" if via_root else "false")
        name = sql.Identifier(self.publication)
        self.connection.execute(
            sql.SQL("CREATE PUBLICATION {} FOR ALL TABLES WITH (publish_via_partition_root = {})").format(name, root)
        )
        self.slots = {plugin: f"{plugin}_{self.token}" for plugin in plugins}
        for plugin, slot in self.slots.items():
            self.connection.execute("SELECT pg_create_logical_replication_slot(%s, %s)", [slot, plugin])
        self.catalogs = {plugin: Catalog(None, self.config) for plugin in plugins}
        self.decoders = {plugin: decoder(plugin, self.catalogs[plugin]) for plugin in plugins}

    def close(self) -> None:
        """Drops what was made."""
        for catalog in self.catalogs.values():
            catalog.close()
        for slot in self.slots.values():
            self.connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
        self.connection.execute(sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(self.publication)))
        self.connection.close()

    def run(self, statements: str) -> None:
        """Executes SQL, each statement of its own transaction unless it says BEGIN."""
        for statement in statements.split(";\n"):
            if statement.strip():
                self.connection.execute(statement.encode())

    def frames(self, plugin: str) -> list[bytes]:
        """The payloads since the last call."""
        kind = sql.SQL("" if plugin == "wal2json" else "binary_")
        options = [part for option in self.decoders[plugin].options().items() for part in option]
        query = sql.SQL("SELECT data FROM pg_logical_slot_get_{}changes(%s, NULL, NULL, VARIADIC %s::text[])")
        rows = self.connection.execute(query.format(kind), [self.slots[plugin], options]).fetchall()
        return [data.encode() if isinstance(data, str) else data for (data,) in rows]

    def events(self, plugin: str) -> list[Event]:
        """The events since the last call, a Truncate a table, without empty transactions: pgoutput leaves them out."""
        decode = self.decoders[plugin].decode
        events = [event for frame in self.frames(plugin) if (event := decode(memoryview(frame))) is not None]
        return list(_filled(_split(events)))

    def both(self) -> list[Event]:
        """pgoutput's events, after comparing wal2json's with them one by one."""
        ours, theirs = self.events("wal2json"), self.events("pgoutput")
        assert [type(event).__name__ for event in ours] == [type(event).__name__ for event in theirs]
        for left, right in zip(ours, theirs, strict=True):
            assert_equal(left, right)
        return theirs

    def rows(self) -> list[Row]:
        """Only the rows of `both`."""
        return [event for event in self.both() if isinstance(event, Row)]


def decoder(plugin: str, catalog: Catalog) -> Decoder:
    """The plugin's decoder."""
    return Wal2jsonDecoder(catalog) if plugin == "wal2json" else PgoutputDecoder(catalog)


def assert_equal(left: Event, right: Event) -> None:
    """Equal in all, save that wal2json does not know NaN from NULL."""
    if isinstance(left, Begin | Commit | Message):
        assert left == right
        return
    if isinstance(left, Truncate) and isinstance(right, Truncate):
        assert list(map(described, left.tables)) == list(map(described, right.tables))
        return
    assert isinstance(left, Row)
    assert isinstance(right, Row)
    assert (left.op, described(left.table)) == (right.op, described(right.table))
    for mine, other in ((left.new, right.new), (left.old, right.old)):
        assert (mine is None) == (other is None), (left, right)
        for column, a, b in zip(left.table.columns if mine else (), mine or (), other or (), strict=True):
            same = b in NONFINITE and column.nonfinite if a is UNKNOWN else a == b
            assert same, (column.name, column.type_name, a, b)


def described(table: Table) -> tuple[Any, ...]:
    """What makes two tables the same."""
    columns = [(c.name, c.type_oid, c.type_name, c.not_null, c.nonfinite, c.masked) for c in table.columns]
    return table.schema, table.name, columns, table.key, table.full, table.version_index


def _split(events: list[Event]) -> Iterator[Event]:
    for event in events:
        if isinstance(event, Truncate):
            yield from (Truncate([table]) for table in event.tables)
        else:
            yield event


def _filled(events: Iterator[Event]) -> Iterator[Event]:
    begin: Begin | None = None
    for event in events:
        if isinstance(event, Begin):
            begin = event
        elif not isinstance(event, Commit):
            if begin is not None:
                yield begin
            begin = None
            yield event
        elif begin is None:
            yield event
        else:
            begin = None


def dropped(connection: psycopg.Connection) -> None:
    """Empties the schemas tests write to."""
    connection.execute('DROP SCHEMA IF EXISTS public, "Odd Schema", cdc CASCADE')
    connection.execute("CREATE SCHEMA public")
