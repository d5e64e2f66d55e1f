"""The source's tables as the decoders and the snapshot need them, read over a connection beside the stream.

Caches what it reads; a row whose columns the cache does not know makes it read again, and `advance` notices DDL that
rows do not show. A lost connection is opened anew once a query; ConnectError when that fails. Thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from threading import RLock
from typing import Any, Concatenate, ParamSpec, TypeVar

import psycopg
from psycopg import Connection, sql

from cdc.config import Config
from cdc.errors import PreconditionError
from cdc.source import relations
from cdc.source.connection import PINNED, connect, connect_error
from cdc.source.events import Table
from cdc.source.layout import Seen, build_table, joined, today, travelling
from cdc.source.relations import Attribute, Relation
from cdc.source.selection import SelectedTable as SelectedTable
from cdc.source.selection import described, is_full
from cdc.source.types import PgType

P = ParamSpec("P")
R = TypeVar("R")


def _locked(method: Callable[Concatenate[Catalog, P], R]) -> Callable[Concatenate[Catalog, P], R]:
    """One thread at a time: rows are filled in another thread than they are decoded in."""

    @wraps(method)
    def run(self: Catalog, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._lock:
            return method(self, *args, **kwargs)

    return run


class Catalog:
    """Resolves names, oids and columns of the stream to tables. `source`: an open connection, a conninfo, or None to
    connect as the config says."""

    def __init__(self, source: Connection | str | None, config: Config) -> None:
        self.config = config
        self._lock = RLock()
        self.generation = 0  # grows when a cached table proved to be out of date
        self.horizon = 0  # commit LSN up to which no DDL is unknown to the cache
        self._mark = ""  # changes with DDL on the relations of the cache
        self._connection = source if isinstance(source, Connection) else None
        self._conninfo = source if isinstance(source, str) else None
        self._relations: dict[int, Relation | None] = {}
        self._oids: dict[tuple[str, str], int | None] = {}
        self._tables: dict[tuple[int, Seen], Table] = {}
        self._origins: dict[int, tuple[int, Table]] = {}  # id(Table) → root's oid; holds the Table, so that ids stay
        self._numbers: dict[int, dict[str, int]] = {}
        self._types: dict[int, PgType] = {}

    # what the configuration selects

    @_locked
    def selected_tables(self) -> list[SelectedTable]:
        """The config's patterns expanded, read afresh; partitions are folded into their roots."""
        selects = self.config.postgres.selects
        names = relations.table_names(self._run)
        found = [self.refresh(oid) for oid, schema, name in names if selects(schema, name)]
        roots = [relation for relation in found if relation is not None]
        return [
            described(root, [leaf for leaf in map(self.refresh, root.leaves) if leaf is not None]) for root in roots
        ]

    @_locked
    def table(self, schema: str, name: str) -> Table:
        """The table as it stands now. Raises PreconditionError when it is absent or has no key."""
        oid = relations.relation_oid(self._run, schema, name)
        relation = None if oid is None else self._root_of(self.refresh(oid))
        if relation is None or relation.schema in relations.CONTROL_SCHEMAS:
            raise PreconditionError(
                f"there is no table {schema}.{name}", hint="correct [postgres] tables, or create the table"
            )
        return self.present(relation)

    @_locked
    def text_columns(self, table: Table) -> list[sql.Composable]:
        """SQL for each column's text, as the codecs take it, from the table as it is now (a renamed column by its new
        name, a dropped one as NULL). Some casts to text differ from the type's output (bool, char(n), inet): format()
        gives the output."""
        return [_NOTHING if now is None else self._text(now.name, now.type_oid) for now in self._now(table)]

    @_locked
    def copy_columns(self, table: Table) -> list[sql.Composable]:
        """The same for COPY, whose text is the types' output without any cast."""
        return [_NOTHING if now is None else sql.Identifier(now.name) for now in self._now(table)]

    def _now(self, table: Table) -> list[Attribute | None]:
        """Each of its columns as it is called now."""
        oid, _ = self._origins[id(table)]
        relation = self.refresh(oid)
        seen: Seen = tuple((column.name, column.type_oid) for column in table.columns)
        found = {} if relation is None else self._today(relation, seen, guess=False)
        if any((now := found.get(name)) is None or (now.name, now.type_oid) != (name, kind) for name, kind in seen):
            self.generation += 1
        return [found.get(name) for name, _ in seen]

    @_locked
    def server_encoding(self) -> str:
        """wal2json writes the database's encoding as it is; only UTF8 is JSON."""
        return str(self._run("SELECT current_setting('server_encoding')")[0][0])

    # what the stream shows

    def advance(self, commit_lsn: int) -> None:
        """Call before the rows of a transaction: notices DDL committed before it (keys, renames, partitions attached or
        detached), at the price of one query whenever the stream has overtaken the last one."""
        if commit_lsn <= self.horizon:
            return
        with self._lock:
            self._advance()

    def _advance(self) -> None:
        self._oids = {name: oid for name, oid in self._oids.items() if oid is not None}
        self.horizon, mark = relations.horizon(self._run, list(self._relations))
        if mark != self._mark:
            self._mark = mark
            self.generation += 1
            self._oids.clear()
            for oid in list(self._relations):
                self.refresh(oid)
            _, self._mark = relations.horizon(self._run, list(self._relations))

    @_locked
    def relation_named(self, schema: str, name: str) -> Relation | None:
        """The relation behind a name now; None when there is none (any more)."""
        if (schema, name) not in self._oids:
            self._oids[schema, name] = relations.relation_oid(self._run, schema, name)
        oid = self._oids[schema, name]
        return None if oid is None else self.relation(oid)

    @_locked
    def relation(self, oid: int) -> Relation | None:
        """The relation with this oid, from the cache when it is there."""
        return self._relations[oid] if oid in self._relations else self.refresh(oid)

    @_locked
    def refresh(self, oid: int) -> Relation | None:
        """Reads a relation again; one that is gone stays as it was last known."""
        relation = relations.read_relation(self._run, oid)
        if oid not in self._relations:
            self._mark = ""  # covers one relation more from now on
            self.horizon = 0
        if relation is None:
            return self._relations.setdefault(oid, None)
        if self._relations.get(oid) != relation:
            self._tables = {place: table for place, table in self._tables.items() if place[0] != oid}
        self._relations[oid] = relation
        self._numbers.setdefault(oid, {}).update({a.name: a.number for a in relation.attributes})
        if relation.root != oid:
            self.refresh(relation.root)
        return relation

    @_locked
    def root(self, relation: Relation) -> Relation:
        """The table under whose name a relation's rows travel."""
        return self._root_of(relation) or relation

    def selects(self, relation: Relation) -> bool:
        """True when rows of the relation travel."""
        root = self.root(relation)
        return root.schema not in relations.CONTROL_SCHEMAS and self.config.postgres.selects(root.schema, root.name)

    def present(self, relation: Relation) -> Table:
        """The table as rows written now show it."""
        return self.table_of(relation, travelling(relation))

    @_locked
    def joined(self, relation: Relation, seen: Seen) -> Seen:
        """All columns of a row of which only `seen` are shown, the relation read afresh."""
        relation = self.refresh(relation.oid) or relation
        return joined(travelling(relation), seen, self._today(relation, seen, guess=False))

    @_locked
    def table_of(self, relation: Relation, seen: Seen) -> Table:
        """The table of rows with these columns, one object as long as nothing changes."""
        root = self.root(relation)
        seen = _in_root_order(root, relation, seen)
        table = self._tables.get((root.oid, seen))
        if table is None:
            found = self._today(root, seen, guess=True)
            table = build_table(root, seen, found, self._full(root), self.config, self.type_of)
            self._tables[root.oid, seen] = table
            self._origins[id(table)] = (root.oid, table)
        return table

    @_locked
    def type_of(self, oid: int) -> PgType:
        """The type behind an oid."""
        return relations.read_type(self._run, oid, self._types)

    @_locked
    def close(self) -> None:
        """Closes the connection, also one that was handed over."""
        if self._connection is not None:
            self._connection.close()

    def _today(self, relation: Relation, seen: Seen, *, guess: bool) -> dict[str, Attribute | None]:
        return today(relation, seen, self._numbers.get(relation.oid, {}), guess=guess)

    def _full(self, root: Relation) -> bool:
        parts = [self.relation(leaf) for leaf in root.leaves] if root.partitioned else [root]
        return is_full(parts)

    def _root_of(self, relation: Relation | None) -> Relation | None:
        return relation if relation is None or relation.root == relation.oid else self.relation(relation.root)

    def _text(self, name: str, type_oid: int) -> sql.Composable:
        column = sql.Identifier(name)
        if not self.type_of(type_oid).plain.cast_to_text:
            return sql.SQL("{}::text").format(column)
        # IS NOT DISTINCT FROM NULL, for IS NULL holds for a row of NULLs too
        return sql.SQL("CASE WHEN {0} IS NOT DISTINCT FROM NULL THEN NULL ELSE format('%s', {0}) END").format(column)

    def _run(self, query: str, parameters: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows; once more on a new connection when the old one was lost."""
        try:
            return self._execute(query, parameters)
        except psycopg.Error as error:
            if self._connection is not None and not self._connection.closed:
                raise connect_error(error) from error
        self._connection = None
        try:
            return self._execute(query, parameters)
        except psycopg.Error as error:
            raise connect_error(error) from error

    def _execute(self, query: str, parameters: Iterable[Any]) -> list[tuple[Any, ...]]:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection.execute(query.encode(), tuple(parameters) or None).fetchall()

    def _connect(self) -> Connection:
        if self._conninfo is None:
            return connect(self.config.postgres, name="memory-cdc catalog")
        return psycopg.connect(self._conninfo, autocommit=True, options=PINNED, application_name="memory-cdc catalog")


_NOTHING = sql.SQL("NULL::text")


def _in_root_order(root: Relation, relation: Relation, seen: Seen) -> Seen:
    """A partition may hold its columns in another order than its root, whose order counts."""
    if root.oid == relation.oid:
        return seen
    order = travelling(root)
    return order if set(order) == set(seen) else seen
