"""What runs again and again, in `cdc.schedules`, and since when each store's tables wait for a verify that passes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection

from cdc.control.queries import rows, run


class Wanted(NamedTuple):
    """A schedule as the configuration asks for it."""

    name: str
    kind: str
    period: timedelta


@dataclass(frozen=True, slots=True)
class Standing:
    """A schedule as it was when read; times are aware. `job` runs now, `last_job` ended last."""

    name: str
    kind: str
    period_seconds: float
    first_seen: datetime
    last_run: datetime | None
    last_success: datetime | None
    last_error: str | None
    job: UUID | None
    last_job: UUID | None

    @property
    def since(self) -> datetime:
        """The last success; while there is none since it was asked for, when that was."""
        return max(self.first_seen, self.last_success or self.first_seen)


class Subject(NamedTuple):
    """A table in a store, and since when its gateway knows it."""

    store: str
    table: str
    first_seen: datetime


def register(connection: Connection[Any], wanted: Sequence[Wanted]) -> None:
    """These are asked for, and no others. One that comes back, or becomes something else, begins anew. Raises
    psycopg.Error."""
    with connection.transaction():
        run(connection, "disable_schedules", names=[schedule.name for schedule in wanted])
        for name, kind, period in wanted:
            run(connection, "enable_schedule", name=name, kind=kind, period=period)


def settle(connection: Connection[Any]) -> list[tuple[str, str]]:
    """Takes over how jobs ended: the schedule's name and the job's state. Raises psycopg.Error."""
    return [(str(name), str(state)) for name, state in run(connection, "settle_schedules")]


def standings(connection: Connection[Any]) -> list[Standing]:
    """Every schedule that is enabled, by name. Raises psycopg.Error."""
    return rows(connection, Standing, "read_schedules")


def claim(connection: Connection[Any], seen: Standing) -> bool:
    """Whether the run is ours: nobody has begun it since it was seen, and none is under way. Raises psycopg.Error."""
    return bool(run(connection, "claim_schedule", name=seen.name, last_run=seen.last_run))


def running(connection: Connection[Any], name: str, job: UUID) -> None:
    """The claimed run is this job. Raises psycopg.Error."""
    run(connection, "schedule_runs", name=name, job=job)


def refused(connection: Connection[Any], name: str, error: str) -> None:
    """The claimed run did not begin, for a reason. Raises psycopg.Error."""
    run(connection, "schedule_refused", name=name, error=error)


def subjects(connection: Connection[Any], tables: Collection[tuple[str, str]]) -> list[Subject]:
    """What is to be verified, of these (store, schema.table), which are noted when they are new. Raises
    psycopg.Error."""
    stores, names = [store for store, _ in tables], [table for _, table in tables]
    run(connection, "note_verify_subjects", stores=stores, tables=names)
    found = [Subject(*row) for row in run(connection, "verify_subjects")]
    return [subject for subject in found if (subject.store, subject.table) in tables]
