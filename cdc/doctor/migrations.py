"""The control schema: what of sql/ is in the database, and whether it is what this program knows."""

from __future__ import annotations

from collections.abc import Iterator

from psycopg import Connection

from cdc.doctor.finding import Finding, error, ok, warning
from cdc.errors import PreconditionError
from cdc.migrations import applied, migrations, pending

AREA = "control"
APPLY = "cdc init --dsn '…', as the owner of the schema cdc"


def check(connection: Connection) -> Iterator[Finding]:
    """Raises psycopg.Error."""
    try:
        known, deployed = migrations(), applied(connection)
        missing = pending(known, deployed)
    except PreconditionError as failed:
        yield error(AREA, failed.message, failed.hint)
        return
    if not deployed:
        text = "the control schema is not there: no watermarks, jobs and signals are kept in the database"
        yield warning(AREA, text, APPLY)
    elif missing:
        yield warning(AREA, f"sql/ is applied up to {deployed[-1].name}, {missing[0].name} is to come", APPLY)
    else:
        yield ok(AREA, f"the control schema is as it has to be, up to sql/{known[-1].name}")
