"""The numbered files of `sql/`: what the pipeline wants to find in a database. Each may be run again and again."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

import psycopg

from cdc.errors import PreconditionError
from cdc.source.connection import connect_error, said


def migrations() -> Iterator[tuple[str, str]]:
    """`(name, text)` in their order."""
    folder = files("cdc").joinpath("sql")
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".sql"):
            yield file.name, file.read_text()


def migrate(conninfo: str) -> list[str]:
    """Runs every file in a transaction of its own; returns their names. Raises ConnectError, PreconditionError."""
    done: list[str] = []
    try:
        with psycopg.connect(conninfo, autocommit=True, options="-c client_min_messages=warning") as connection:
            for name, text in migrations():
                try:
                    with connection.transaction():
                        connection.execute(text.encode())
                except psycopg.Error as error:
                    if connection.broken:
                        raise
                    raise PreconditionError(
                        f"sql/{name} cannot be applied: {said(error)}",
                        hint="run it as a role that may do so",
                    ) from error
                done.append(name)
    except psycopg.OperationalError as error:
        raise connect_error(error) from error
    return done
