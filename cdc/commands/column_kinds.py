"""How PostgreSQL compares the values of a table's columns, for filters of searches."""

from __future__ import annotations

from collections.abc import Mapping

import psycopg

from cdc.config import Config
from cdc.source.connection import connect, connect_error
from consumers.conditions import Kind

# information_schema.columns: data_type is the type below a domain
_TYPES = "SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = %s AND table_name = %s"
_NUMBERS = ("smallint", "integer", "bigint", "numeric", "real", "double precision", "oid")
_TIMES = ("date", "timestamp without time zone", "timestamp with time zone")
KINDS: Mapping[str, Kind] = {
    "boolean": "boolean", "uuid": "uuid", **dict.fromkeys(_NUMBERS, "number"), **dict.fromkeys(_TIMES, "time"),
}  # fmt: skip


def column_kinds(config: Config, table: str) -> dict[str, Kind]:
    """By column; what has no order of its own here, and what is masked, is text. Raises ConnectError."""
    schema, _dot, name = table.partition(".")
    masks = config.table(schema, name).mask
    with connect(config.postgres, name="memory-cdc gateway") as connection:
        try:
            found = connection.execute(_TYPES, (schema, name)).fetchall()
        except psycopg.Error as error:
            raise connect_error(error) from error
    return {column: "text" if column in masks else KINDS.get(kind, "text") for column, kind in found}
