"""What the server's catalog says of a relation now: columns, key, replica identity, partition leaves.

Plain data and the queries behind it; `catalog.py` caches it, `layout.py` turns it into the tables of the stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from cdc.errors import ConnectError
from cdc.source.types import NONFINITE, PgType

CONTROL_SCHEMAS = ("cdc", "pg_catalog", "information_schema")  # never selected, whatever a pattern says
_ROW_KINDS = ["r", "p"]  # pg_class.relkind: tables and partitioned tables

Query = tuple[Any, ...]


class Runs(Protocol):
    """Runs a query and gives all its rows."""

    def __call__(self, query: str, parameters: Iterable[Any]) -> list[Query]: ...


@dataclass(frozen=True, slots=True)
class Attribute:
    """One live column; `number` never changes and is never given to another column."""

    number: int
    name: str
    type_oid: int
    type_name: str
    not_null: bool
    generated: bool
    bounded: bool = False  # a CHECK constraint keeps NaN and ±Infinity out


@dataclass(frozen=True, slots=True)
class Identity:
    """Replica identity: `kind` is pg_class.relreplident (d, n, f, i), `columns` those it names, in index order."""

    kind: str
    columns: tuple[str, ...]

    @property
    def usable(self) -> bool:
        """True when updates and deletes tell which row they mean."""
        return self.kind == "f" or bool(self.columns)


@dataclass(frozen=True, slots=True)
class Relation:
    """A table, partition or partitioned table. `leaves` of a partitioned one, `root` the topmost ancestor's oid."""

    oid: int
    schema: str
    name: str
    partitioned: bool
    root: int
    primary_key: tuple[str, ...]
    identity: Identity
    attributes: tuple[Attribute, ...]
    leaves: tuple[int, ...]

    @property
    def key(self) -> tuple[str, ...]:
        """The columns that deletes name: REPLICA IDENTITY USING INDEX's, else the primary key's. Empty if none."""
        return self.identity.columns if self.identity.kind == "i" else self.primary_key


_NAMES = """
SELECT c.oid::int8, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = ANY(%s) AND NOT c.relispartition AND c.relpersistence = 'p'
  AND n.nspname <> ALL(%s) AND n.nspname !~ '^pg_toast|^pg_temp' ORDER BY 2, 3
"""
_OID = """
SELECT c.oid::int8 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s AND c.relkind = ANY(%s)
"""
_RELATION = """
SELECT c.oid::int8, n.nspname, c.relname, c.relkind = 'p', coalesce(pg_partition_root(c.oid), c.oid)::oid::int8,
       c.relreplident::text,
       ARRAY(SELECT t.relid::oid::int8 FROM pg_partition_tree(c.oid) t WHERE t.isleaf AND t.relid <> c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s
"""
_INDEXES = """
SELECT i.indisprimary, i.indisreplident,
       ARRAY(SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY AS k(number, place)
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
             WHERE k.place <= i.indnkeyatts ORDER BY k.place)
FROM pg_index i WHERE i.indrelid = %s AND (i.indisprimary OR i.indisreplident) AND i.indisvalid
"""
_ATTRIBUTES = """
SELECT a.attnum, a.attname, a.atttypid::int8, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated <> ''
FROM pg_attribute a WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
# CHECK constraints of one float or numeric column alone that use nothing a user made (functions, operators, types):
# they are evaluated with our rights. What PostgreSQL brings itself has no entry in pg_depend.
_CHECKS = """
SELECT a.attnum, quote_ident(a.attname), a.atttypid::regtype::text, pg_get_expr(c.conbin, c.conrelid)
FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND ARRAY[a.attnum] = c.conkey
WHERE c.conrelid = %s AND c.contype = 'c' AND c.convalidated AND a.atttypid = ANY(%s) AND NOT EXISTS (
    SELECT FROM pg_depend d
    WHERE d.classid = 'pg_constraint'::regclass AND d.objid = c.oid AND d.refclassid <> 'pg_class'::regclass)
"""
_REFUSES = """
SELECT NOT bool_or(coalesce(({check}), true)) FROM unnest('{{NaN,Infinity,-Infinity}}'::{type}[]) AS v({name})
"""
_TYPE = """
SELECT t.oid::int8, t.typname, t.typbasetype::int8,
       CASE WHEN t.typinput = 'array_in'::regproc THEN t.typelem::int8 ELSE 0 END, t.typdelim::text,
       coalesce((SELECT e.extname FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
                 WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e'), ''),
       EXISTS (SELECT FROM pg_cast c
               WHERE c.castsource = t.oid AND c.casttarget = 'text'::regtype AND c.castmethod = 'f')
FROM pg_type t WHERE t.oid = %s
"""
_HORIZON = """
SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END - '0/0')::int8
"""
_MARK = """
SELECT coalesce(md5(string_agg(concat_ws(' ', part, oid, xid), ',' ORDER BY part, oid::int8, xid::text)), '') FROM (
    SELECT 'c', oid, xmin FROM pg_class WHERE oid = ANY(%s)
    UNION ALL SELECT 'a', attrelid, xmin FROM pg_attribute WHERE attrelid = ANY(%s) AND attnum > 0
    UNION ALL SELECT 'i', indrelid, xmin FROM pg_index WHERE indrelid = ANY(%s)
    UNION ALL SELECT 'h', inhrelid, xmin FROM pg_inherits WHERE inhrelid = ANY(%s) OR inhparent = ANY(%s)
) AS parts(part, oid, xid)
"""


def table_names(run: Runs) -> list[tuple[int, str, str]]:
    """(oid, schema, name) of every table that could be selected; partitions only by their root."""
    return [(oid, schema, name) for oid, schema, name in run(_NAMES, (_ROW_KINDS, list(CONTROL_SCHEMAS)))]


def relation_oid(run: Runs, schema: str, name: str) -> int | None:
    """The oid behind a name now."""
    rows = run(_OID, (schema, name, _ROW_KINDS))
    return rows[0][0] if rows else None


def read_relation(run: Runs, oid: int) -> Relation | None:
    """Everything about one relation; None when it is gone."""
    rows = run(_RELATION, (oid,))
    if not rows:
        return None
    oid, schema, name, partitioned, root, kind, leaves = rows[0]
    indexes = run(_INDEXES, (oid,))
    primary = next((tuple(names) for is_primary, _, names in indexes if is_primary), ())
    named = next((tuple(names) for _, is_identity, names in indexes if is_identity), ())
    columns = {"d": primary, "i": named}.get(kind, ())
    bounded = _bounded(run, oid)
    attributes = tuple(
        Attribute(number, column, type_oid, type_name, not_null, generated, number in bounded)
        for number, column, type_oid, type_name, not_null, generated in run(_ATTRIBUTES, (oid,))
    )
    return Relation(oid, schema, name, partitioned, root, primary, Identity(kind, columns), attributes, tuple(leaves))


def _bounded(run: Runs, oid: int) -> set[int]:
    """Numbers of the columns whose CHECK refuses every value that wal2json would show as null."""
    checks = run(_CHECKS, (oid, sorted(NONFINITE)))
    return {number for number, name, kind, check in checks if _refuses(run, name, kind, check)}


def _refuses(run: Runs, name: str, kind: str, check: str) -> bool:
    try:
        return bool(run(_REFUSES.format(check=check, type=kind, name=name), ())[0][0])
    except ConnectError:
        return False  # the expression fails on NaN or Infinity; a lost connection shows at the next query


def horizon(run: Runs, oids: list[int]) -> tuple[int, str]:
    """(WAL position, a text that changes with DDL on these relations). The position is read first, in a statement of
    its own: what commits after it is not covered, whatever the second statement saw."""
    lsn = run(_HORIZON, ())[0][0]
    return lsn, run(_MARK, (oids,) * 5)[0][0]


def read_type(run: Runs, oid: int, known: dict[int, PgType]) -> PgType:
    """A type with what lies below it; one that is gone counts as text. Fills `known`."""
    if oid in known:
        return known[oid]
    rows = run(_TYPE, (oid,))
    if not rows:
        kind = PgType(oid, "unknown")
    else:
        oid, name, base, element, delimiter, extension, cast = rows[0]
        kind = PgType(
            oid,
            name,
            read_type(run, base, known) if base else None,
            read_type(run, element, known) if element else None,
            delimiter,
            extension,
            cast,
        )
    known[oid] = kind
    return kind
