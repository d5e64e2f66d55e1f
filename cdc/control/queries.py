"""The statements of queries.sql by their names."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any, TypeVar

from psycopg import Connection
from psycopg.rows import class_row, tuple_row

R = TypeVar("R")
_NAME = re.compile(r"^-- name: (\w+)\n((?:--.*\n)*)", re.MULTILINE)


def _read(text: str) -> dict[str, bytes]:
    pieces = _NAME.split(text)[1:]  # name, description, statement, name, …
    return {name: statement.strip().encode() for name, statement in zip(pieces[::3], pieces[2::3], strict=True)}


QUERIES = _read(files("cdc.control").joinpath("queries.sql").read_text("utf-8"))


def run(connection: Connection[Any], name: str, /, **parameters: object) -> list[tuple[Any, ...]]:
    """All rows, none for a statement that returns none. Raises psycopg.Error."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        cursor.execute(QUERIES[name], parameters)
        return cursor.fetchall() if cursor.description else []


def rows(connection: Connection[Any], kind: type[R], name: str, /, **parameters: object) -> list[R]:
    """The same, each row as a `kind`, whose fields are the columns. Raises psycopg.Error."""
    with connection.cursor(row_factory=class_row(kind)) as cursor:
        return cursor.execute(QUERIES[name], parameters).fetchall()
