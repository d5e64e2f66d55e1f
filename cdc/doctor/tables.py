"""The tables the configuration selects: they exist, rows can be told apart, and every named column is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from psycopg import Connection, sql

from cdc.config import Config
from cdc.config import Table as Settings
from cdc.doctor.finding import Finding, error, ok, warning
from cdc.errors import CdcError
from cdc.source.catalog import Catalog, SelectedTable
from cdc.source.relations import Relation

AREA = "tables"
ROLES = ("vector", "text", "user", "recency", "version_column")


def check(connection: Connection, config: Config, selected: Sequence[SelectedTable]) -> Iterator[Finding]:
    """Raises psycopg.Error, ConnectError."""
    names = {f"{table.schema}.{table.name}" for table in selected}
    for pattern in config.postgres.tables:
        if not any(config.postgres.model_copy(update={"tables": (pattern,)}).selects(*n.split(".", 1)) for n in names):
            remedy = "create it (`cdc init` makes public.memories), or correct [postgres] tables"
            yield error(AREA, f"there is no table {pattern}", remedy)
    for name in sorted(set(config.tables) - names):
        yield warning(AREA, f'[tables."{name}"] is of no table that travels', "correct its name or [postgres] tables")
    if names and config.faiss.table not in names:
        yield error(
            AREA,
            f"the index is of {config.faiss.table}, which does not travel",
            "set faiss.table to a table of [postgres] tables",
        )
    catalog = Catalog(connection, config)
    for table in selected:
        found = list(_table(connection, catalog, config, table))
        yield from found or [ok(AREA, f"{table.schema}.{table.name} can be read, and its rows told apart")]


def _table(connection: Connection, catalog: Catalog, config: Config, table: SelectedTable) -> Iterator[Finding]:
    name = f"{table.schema}.{table.name}"
    yield from _rights(connection, table)
    yield from _identity(config, table)
    relation = catalog.relation(table.oid)
    if relation is None:
        return
    if not table.full and (wide := _toastable(connection, table)):
        yield warning(
            AREA,
            f"{name} has columns that may be stored apart ({', '.join(wide)}) and no REPLICA IDENTITY FULL, so every "
            "update that leaves them alone costs a query",
            f"{_alter(table)} REPLICA IDENTITY FULL",
        )
    yield from _columns(config.table(table.schema, table.name), relation)
    if table.key:
        try:
            catalog.table(table.schema, table.name)
        except CdcError as failed:
            yield error(AREA, failed.message, failed.hint)


def _toastable(connection: Connection, table: SelectedTable) -> list[str]:
    """Columns whose values may be stored apart from their row (manual, "TOAST")."""
    rows = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped "
        "AND attstorage <> 'p' ORDER BY attnum",
        [table.oid],
    )
    return [name for (name,) in rows]


def _rights(connection: Connection, table: SelectedTable) -> Iterator[Finding]:
    """What the role lacks, with the statement that grants it."""
    row = connection.execute(
        "SELECT current_user, has_schema_privilege(%s, 'USAGE'), "
        "has_schema_privilege(%s, 'USAGE') AND has_table_privilege(%s::oid, 'SELECT'), "
        "row_security_active(%s::oid)",
        [table.schema, table.schema, table.oid, table.oid],
    ).fetchone()
    role, enters, reads, hides = row or ("?", False, False, False)
    grantee = sql.Identifier(role).as_string(connection)
    if not enters:
        remedy = f"GRANT USAGE ON SCHEMA {sql.Identifier(table.schema).as_string(connection)} TO {grantee}"
        yield error(AREA, f"role {role} may not enter the schema {table.schema}", remedy)
    elif not reads:
        remedy = f"GRANT SELECT ON {sql.Identifier(table.schema, table.name).as_string(connection)} TO {grantee}"
        yield error(AREA, f"role {role} may not read {table.schema}.{table.name}", remedy)
    elif hides:
        text = f"row level security hides rows of {table.schema}.{table.name} from role {role}"
        yield error(AREA, text, f"ALTER ROLE {grantee} BYPASSRLS")


def _identity(config: Config, table: SelectedTable) -> Iterator[Finding]:
    say = warning if config.postgres.missing_identity == "allow" else error
    if not table.key:
        yield say(AREA, f"{table.schema}.{table.name} has no primary key", table.remedy)
    elif table.unusable:
        which = ", ".join(table.unusable)
        yield say(AREA, f"updates and deletes of {which} do not tell which row they mean", table.remedy)


def _columns(settings: Settings, relation: Relation) -> Iterator[Finding]:
    """What [tables."…"] names."""
    name = f"{relation.schema}.{relation.name}"
    present = {attribute.name for attribute in relation.attributes}
    where = f'[tables."{name}"]'
    for role in ROLES:
        column = getattr(settings, role)
        if column is None:
            continue
        if column not in present:
            yield error(AREA, f"{where} {role} = {column!r}: there is no such column", f"name a column of {name}")
        elif not settings.keeps(column):
            yield error(AREA, f"{where} {role} = {column!r}: the column is left out", "keep it, or name another column")
        elif column in settings.mask:
            yield warning(
                AREA, f"{where} {role} = {column!r} is masked, so it has lost its meaning", "name an unmasked column"
            )
    for column in sorted({*settings.mask, *(c for c in (*settings.columns, *settings.exclude) if _plain(c))} - present):
        yield error(AREA, f"{where} speaks of {column!r}: there is no such column", f"name a column of {name}")


def _plain(pattern: str) -> bool:
    return not set("*?[") & set(pattern)


def _alter(table: SelectedTable) -> str:
    return "ALTER TABLE " + ".".join('"' + part.replace('"', '""') + '"' for part in (table.schema, table.name))
