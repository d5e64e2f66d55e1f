"""The columns of a row as it was written, matched with what the catalog knows now, made into an events.Table.

Rows wait in the log while tables change, so the stream's names and types decide; the catalog adds key, NOT NULL and
generated columns. A column the catalog no longer has was dropped or renamed since.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import msgspec

from cdc.config import Config
from cdc.config import Table as TableConfig
from cdc.errors import ConfigError, PreconditionError
from cdc.source.events import Column, Table
from cdc.source.masking import masked
from cdc.source.relations import Attribute, Relation
from cdc.source.types import NONFINITE, PgType, codec

Seen = tuple[tuple[str, int], ...]  # (name, type oid) of each column in the stream, in its order
TypeOf = Callable[[int], PgType]


def travelling(relation: Relation) -> Seen:
    """The columns that rows written now would show. Generated ones stay: pgoutput does not send them (before 18)."""
    return tuple((a.name, a.type_oid) for a in relation.attributes if not a.generated)


def today(relation: Relation, seen: Seen, numbers: Mapping[str, int], *, guess: bool) -> dict[str, Attribute | None]:
    """What each column of the stream is now; None for one that was dropped since. `numbers` are the attnums of names
    seen before; `guess` takes a live column of the same type for a renamed one where they do not tell."""
    live = {(a.name, a.type_oid): a for a in relation.attributes}
    named = {a.name: a for a in relation.attributes}
    numbered = {a.number: a for a in relation.attributes}
    found = {name: live.get((name, oid)) or named.get(name) or numbered.get(numbers.get(name, 0)) for name, oid in seen}
    taken = {a.number for a in found.values() if a is not None}
    free = [a for a in relation.attributes if a.number not in taken and not a.generated]
    for name, oid in seen:
        if guess and found[name] is None and name not in numbers:
            found[name] = next((a for a in free if a.type_oid == oid), None)
            free = [a for a in free if a is not found[name]]
    return found


def joined(live: Seen, seen: Seen, found: Mapping[str, Attribute | None]) -> Seen:
    """The columns of a row that shows only some: those live now, plus those it shows that are not (any more); a column
    shown under its former name stands for itself."""
    former = {now.name: name for name, now in found.items() if now is not None}
    types = dict(seen)
    names = [former.get(name, name) for name, _ in live]
    own = dict(live)
    columns = [(name, types[name] if name in types else own[name]) for name in names]
    return (*columns, *(column for column in seen if column[0] not in names))


def build_table(
    relation: Relation, seen: Seen, attributes: dict[str, Attribute | None], full: bool, config: Config, type_of: TypeOf
) -> Table:
    """The table of rows with these columns. Raises PreconditionError (no key) and ConfigError (masks)."""
    settings = config.table(relation.schema, relation.name)
    kept = [
        (name, oid)
        for name, oid in seen
        if settings.keeps(name) and not ((found := attributes[name]) is not None and found.generated)
    ]
    columns = tuple(_column(name, oid, attributes[name], settings, config, type_of) for name, oid in kept)
    names = [column.name for column in columns]
    key = _key(relation, seen, attributes, names, config)
    version = settings.version_column
    return Table(
        relation.schema,
        relation.name,
        columns,
        key,
        full,
        b",".join(_member(name) for name in names),
        b"{" + b",".join(_member(names[i]) for i in key) + b"}",
        names.index(version) if version in names else None,
    )


def part_of(table: Table, wanted: Collection[str]) -> Table:
    """The table with the wanted columns and its key only."""
    kept = [i for i, column in enumerate(table.columns) if i in table.key or column.name in wanted]
    columns = tuple(table.columns[i] for i in kept)
    version = table.version_index
    return replace(
        table,
        columns=columns,
        key=tuple(kept.index(i) for i in table.key),
        row_template=b",".join(_member(column.name) for column in columns),
        version_index=kept.index(version) if version in kept else None,
    )


def _column(
    name: str, oid: int, attribute: Attribute | None, settings: TableConfig, config: Config, type_of: TypeOf
) -> Column:
    kind = type_of(oid)
    mask = settings.mask.get(name)
    known = attribute is not None and attribute.type_oid == oid
    return Column(
        name=name,
        type_oid=oid,
        type_name=attribute.type_name if attribute is not None and known else kind.name,
        codec=masked(mask, codec(kind, vector=name == settings.vector), config),
        not_null=attribute is not None and attribute.not_null,
        nonfinite=oid in NONFINITE and not (attribute is not None and known and attribute.bounded),
        masked=mask is not None,
    )


def _key(
    relation: Relation, seen: Seen, attributes: dict[str, Attribute | None], names: Sequence[str], config: Config
) -> tuple[int, ...]:
    wanted = relation.key
    if not wanted:
        if config.postgres.missing_identity == "refuse":
            raise missing_key(relation)
        return tuple(range(len(names)))
    then = {found.name: name for name, found in attributes.items() if found is not None}
    indexes = []
    for now in wanted:
        name = then.get(now, now)
        if name not in names:
            raise _keyless(relation, name, {seen_name for seen_name, _ in seen})
        indexes.append(names.index(name))
    return tuple(indexes)


def missing_key(relation: Relation) -> PreconditionError:
    """A table whose rows cannot be told apart, with the statements that mend it."""
    name = quoted(relation)
    return PreconditionError(
        f"{relation.schema}.{relation.name} has no primary key and no REPLICA IDENTITY USING INDEX",
        hint=f'ALTER TABLE {name} ADD PRIMARY KEY (…), or set [postgres] missing_identity = "allow" and '
        f"ALTER TABLE {name} REPLICA IDENTITY FULL (the whole row is then its key)",
    )


def quoted(relation: Relation) -> str:
    """The name as SQL takes it."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in (relation.schema, relation.name))


def _keyless(relation: Relation, column: str, seen: set[str]) -> ConfigError | PreconditionError:
    table = f"{relation.schema}.{relation.name}"
    if column in seen:
        return ConfigError(
            f"the key column {column} of {table} is left out by the config",
            hint=f'keep it, or hash it: [tables."{table}".mask] {column} = "hash"',
        )
    return PreconditionError(
        f"rows of {table} in the stream lack its key column {column}: the key was changed after they were written",
        hint="run `cdc resync`",
    )


def _member(name: str) -> bytes:
    return msgspec.json.encode(name).replace(b"%", b"%%") + b":%b"
