"""Comparisons of a store with PostgreSQL, in `cdc.verify_runs`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection

from cdc.control.queries import rows, run


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyRun:
    """One run: `table` is schema.table, `position` the wire form compared at (None when it did not come so far),
    `share` of the rows compared (0 to 1], counts of keys, `error` why it ended early, `run_by` who or what ran it."""

    store: str
    table: str
    started_at: datetime
    ended_at: datetime
    position: str | None
    rows: int
    missing: int = 0
    extra: int = 0
    stale: int = 0
    different: int = 0
    unsettled: int = 0
    repaired: int = 0
    share: float = 1.0
    error: str | None = None
    run_by: str
    job_id: UUID | None = None

    @property
    def equal(self) -> bool:
        """It came to its end and found no difference."""
        found = self.missing + self.extra + self.stale + self.different + self.unsettled
        return self.error is None and found == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded(VerifyRun):
    """A run as it stands in the table; `id` grows with time."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Newest(Recorded):
    """The newest run of a store and table. `passed_at`: end of the last one over all rows without a difference."""

    passed_at: datetime | None


def record_verify(connection: Connection[Any], verified: VerifyRun) -> int:
    """Keeps a run; its id. Raises psycopg.Error."""
    return int(run(connection, "record_verify", **asdict(verified))[0][0])


def newest(connection: Connection[Any]) -> list[VerifyRun]:
    """The newest run of each store and table. Raises psycopg.Error."""
    return rows(connection, VerifyRun, "newest_verify")


def since(connection: Connection[Any], number: int) -> list[Recorded]:
    """Runs recorded after that number, in order. Raises psycopg.Error."""
    return rows(connection, Recorded, "verified_since", number=number)


def last(connection: Connection[Any]) -> list[Newest]:
    """Of each store and table. Raises psycopg.Error."""
    return rows(connection, Newest, "last_verified")
