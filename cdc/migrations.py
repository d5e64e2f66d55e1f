"""The numbered files of `sql/`: what the pipeline wants to find in a database, and what of it is there.

Each file is applied once, in the order of the numbers, in a transaction of its own that also notes it in
`cdc.migrations`. A database that was made before there was that table is adopted: the files of then may be run again,
and are. One program at a time migrates a database; others wait for it and then find nothing to do.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import psycopg
from psycopg import Connection

from cdc.errors import PreconditionError
from cdc.source.connection import connect_error, said

_NAME = re.compile(r"(\d{3})_[a-z0-9_]+\.sql")
_LOCK = 0x6D656D6F_63646300  # pg_advisory_lock: any number that nobody else takes
_THERE = "SELECT 1 FROM pg_tables WHERE schemaname = 'cdc' AND tablename = 'migrations'"
_WRITTEN = "SELECT number, name, sha256 FROM cdc.migrations ORDER BY number"
_NOTE = "INSERT INTO cdc.migrations (number, name, sha256) VALUES (%s, %s, %s)"
UPGRADE = "install the version of memory-cdc that applied it, or a newer one"


@dataclass(frozen=True, slots=True)
class Migration:
    """A numbered file; `sha256` of its text, in hex."""

    number: int
    name: str
    text: str

    @property
    def sha256(self) -> str:
        """By which a changed file is known."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Applied:
    """What a database says of a file."""

    number: int
    name: str
    sha256: str


def migrations() -> list[Migration]:
    """The files of this program in their order. Raises PreconditionError for a name without a number of its own."""
    folder = files("cdc").joinpath("sql")
    found = [_read(file.name, file.read_text("utf-8")) for file in folder.iterdir() if file.name.endswith(".sql")]
    numbers = [file.number for file in found]
    if len(set(numbers)) < len(numbers):
        raise PreconditionError("two files of sql/ have the same number", hint="give the newer one the next number")
    return sorted(found, key=lambda file: file.number)


def _read(name: str, text: str) -> Migration:
    match = _NAME.fullmatch(name)
    if match is None:
        raise PreconditionError(f"sql/{name} has no number", hint="name it like 080_what_it_makes.sql")
    return Migration(int(match[1]), name, text)


def applied(connection: Connection[Any]) -> list[Applied]:
    """What the database notes; nothing for one that was migrated before it noted it, or never. Raises psycopg.Error."""
    there = connection.execute(_THERE).fetchone()
    return [Applied(*row) for row in connection.execute(_WRITTEN)] if there else []


def pending(known: Sequence[Migration], deployed: Sequence[Applied]) -> list[Migration]:
    """The files to be applied. Raises PreconditionError when the database was migrated by other files than these."""
    ours = {file.number: file for file in known}
    newest = max((there.number for there in deployed), default=-1)
    for there in deployed:
        file = ours.get(there.number)
        if file is None and there.number > max(ours, default=-1):
            raise PreconditionError(f"the database is newer than this program: it has sql/{there.name}", hint=UPGRADE)
        if file is None:
            raise PreconditionError(f"sql/{there.name} was applied, and this program does not have it", hint=UPGRADE)
        if (file.name, file.sha256) != (there.name, there.sha256):
            raise PreconditionError(
                f"sql/{file.name} is not what was applied as sql/{there.name}",
                hint="put the file back as it was, and write what has to change as a file with the next number",
            )
    missing = [file for file in known if file.number not in {there.number for there in deployed}]
    if missing and missing[0].number < newest:
        raise PreconditionError(
            f"sql/{missing[0].name} was never applied, although sql/ was up to {newest:03}",
            hint="give the file the next number: what was applied later may rest on its absence",
        )
    return missing


def migrate(conninfo: str) -> list[str]:
    """Applies what is missing; returns the files' names. Raises ConnectError, PreconditionError."""
    done: list[str] = []
    try:
        with psycopg.connect(conninfo, autocommit=True, options="-c client_min_messages=warning") as connection:
            connection.execute("SELECT pg_advisory_lock(%s)", [_LOCK])  # until the connection ends
            for file in pending(migrations(), applied(connection)):
                _apply(connection, file)
                done.append(file.name)
    except psycopg.OperationalError as error:
        raise connect_error(error) from error
    return done


def _apply(connection: Connection[Any], file: Migration) -> None:
    try:
        with connection.transaction():
            connection.execute(file.text.encode())
            connection.execute(_NOTE, [file.number, file.name, file.sha256])
    except psycopg.Error as error:
        if connection.broken:
            raise
        raise PreconditionError(
            f"sql/{file.name} cannot be applied: {said(error)}",
            hint="run it as a role that may do so",
        ) from error
