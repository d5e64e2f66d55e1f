"""What is old is removed: ended jobs, answered signals, verify runs, closed letters, conflicts, audit rows."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from psycopg import Connection

from cdc.control.queries import run

KEEP = timedelta(days=90)
KEEP_AUDIT = timedelta(days=365)


def prune(connection: Connection[Any], keep: timedelta = KEEP, keep_audit: timedelta = KEEP_AUDIT) -> dict[str, int]:
    """Removes what is older; how many rows of which table. Also folds the counters of `cdc.count_rows`, so run it every
    few minutes where rows are counted. The newest verify run of each store and table stays. Raises
    psycopg.errors.InvalidParameterValue for a `keep_audit` under 30 days, psycopg.Error."""
    return {str(what): int(removed) for what, removed in run(connection, "prune", keep=keep, keep_audit=keep_audit)}
