"""How a table was defined when it was last read whole, kept in progress, so that DDL is noticed by the next start too.

The stream shows rows as they are written, but no DDL: rows that were there before keep, in topics and stores, the
columns and the key they had. So a table whose definition changed is read again. The request for it goes through the
stream, behind the DDL, and the sweep at that snapshot's end removes what is older: rows of a table that was dropped,
rows under a former key, and what passed unseen while the publication or the replica identity left it out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from psycopg import Connection

from cdc.config import Postgres
from cdc.errors import PreconditionError
from cdc.source.events import MESSAGE_PREFIX

Name = tuple[str, str]  # schema, table

_TABLES = """
SELECT n.nspname || '.' || c.relname,
       concat_ws(' ', c.oid, c.relreplident, (
           SELECT string_agg(concat_ws(',', i.indkey, i.indisprimary, i.indisreplident), ';' ORDER BY i.indexrelid)
           FROM pg_index i WHERE i.indrelid = c.oid AND (i.indisprimary OR i.indisreplident)), (
           SELECT concat_ws(',', p.oid, p.xmin, r.oid, r.xmin) FROM pg_publication p
           LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid
           WHERE p.pubname = %(publication)s)),
       (SELECT jsonb_object_agg(attnum, concat_ws(' ', attname, atttypid, atttypmod)) FROM pg_attribute
        WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
       (SELECT coalesce(jsonb_agg(attnum::text), '[]') FROM pg_attribute
        WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
        AND (atthasdef OR atthasmissing OR attidentity <> ''))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p')
AND (n.nspname, c.relname) IN (SELECT * FROM unnest(%(schemas)s::text[], %(names)s::text[]))
"""
_PUBLICATION = """
SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate FROM pg_publication WHERE pubname = %s
"""


class Definition(msgspec.Struct, frozen=True):
    """`made`: the table's oid, replica identity, key and publication; `columns`: attribute number → name and type;
    `filled`: the numbers of columns that rows had a value in when they were added."""

    made: str
    columns: dict[str, str]
    filled: list[str] = []


Definitions = Mapping[str, Definition]  # by "schema.table"


def read_definitions(connection: Connection[Any], config: Postgres, tables: Sequence[Name]) -> dict[str, Definition]:
    """As they are now. Raises PreconditionError for a publication that leaves out a kind of change."""
    publication = config.publication if config.plugin == "pgoutput" else None
    if publication is not None:
        _check(connection, publication)
    parameters = {
        "publication": publication,
        "schemas": [schema for schema, _ in tables],
        "names": [name for _, name in tables],
    }
    found = connection.execute(_TABLES, parameters).fetchall()
    return {label: Definition(made, columns or {}, filled) for label, made, columns, filled in found}


def changed(before: Definitions, now: Definitions) -> list[str]:
    """Tables to be read again: a column that rows have no value in is added without that."""
    return sorted(label for label in before.keys() & now.keys() if _differs(before[label], now[label]))


def _differs(before: Definition, now: Definition) -> bool:
    kept = all(now.columns.get(number) == column for number, column in before.columns.items())
    added = now.columns.keys() - before.columns.keys()
    return before.made != now.made or not kept or not added.isdisjoint(now.filled)


def ask(connection: Connection[Any], label: str) -> None:
    """Requests a snapshot through the stream, behind all DDL committed by now."""
    content = json.dumps({"kind": "snapshot", "table": label.split(".")})
    connection.execute("SELECT pg_logical_emit_message(true, %s, %s)", (MESSAGE_PREFIX, content))


def _check(connection: Connection[Any], publication: str) -> None:
    row = connection.execute(_PUBLICATION, (publication,)).fetchone()
    if row is not None and not row[0]:
        raise PreconditionError(
            f"publication {publication} leaves out a kind of change, which would be lost",
            hint=f"ALTER PUBLICATION {publication} SET (publish = 'insert, update, delete, truncate'), then start the "
            "reader again: it reads the tables again",
        )
