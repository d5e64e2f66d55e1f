"""Long work that somebody asked for, in `cdc.jobs`: queued → running → succeeded, failed or cancelled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from psycopg import Connection
from psycopg.types.json import Jsonb

from cdc.control.queries import rows
from cdc.errors import PreconditionError

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Figures = Mapping[str, Any]
SILENT = "its process is gone"


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it was when read; each step returns it anew. Times are aware; `done` and `total` count units of work,
    `total` None while unknown; `before` and `after` are figures; `error` one sentence without any value of a row."""

    id: UUID
    kind: str
    arguments: dict[str, Any]
    asked_by: str
    state: State
    stage: str | None
    done: int
    total: int | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    touched_at: datetime
    cancel_at: datetime | None
    ended_at: datetime | None

    @staticmethod
    def create(connection: Connection[Any], kind: str, arguments: Figures, asked_by: str) -> Job:
        """A job that waits. Raises psycopg.Error."""
        return rows(connection, Job, "create_job", kind=kind, arguments=Jsonb(dict(arguments)), asked_by=asked_by)[0]

    @staticmethod
    def read(connection: Connection[Any], job: UUID) -> Job | None:
        """As it is now; None when there is none. Raises psycopg.Error."""
        return next(iter(rows(connection, Job, "read_job", id=job)), None)

    @staticmethod
    def newest(connection: Connection[Any], limit: int = 100) -> list[Job]:
        """The newest first. Raises psycopg.Error."""
        return rows(connection, Job, "newest_jobs", limit=limit)

    @staticmethod
    def ask_to_cancel(connection: Connection[Any], job: UUID) -> Job | None:
        """A waiting job ends at once, a running one sees `cancelling` at its next step; None when it has ended before
        or never was. Raises psycopg.Error."""
        return next(iter(rows(connection, Job, "ask_job_to_cancel", id=job)), None)

    @staticmethod
    def fail_silent(connection: Connection[Any], silence: timedelta) -> list[Job]:
        """Ends running jobs that were not advanced for so long; returns them. Raises psycopg.Error."""
        return rows(connection, Job, "fail_silent_jobs", silence=silence, error=SILENT)

    @property
    def cancelling(self) -> bool:
        """Somebody asked to cancel it, and it has not ended yet."""
        return self.cancel_at is not None and self.ended_at is None

    def start(self, connection: Connection[Any], before: Figures | None = None) -> Job:
        """queued → running. Raises PreconditionError when it is not queued (any more), psycopg.Error."""
        return self._moved(connection, "start_job", before=_json(before))

    def advance(
        self, connection: Connection[Any], done: int | None = None, total: int | None = None, stage: str | None = None
    ) -> Job:
        """How far it is; None keeps what was said. Without arguments: it is alive. Look at `cancelling` of the result.
        Raises PreconditionError when it does not run (any more), psycopg.Error."""
        return self._moved(connection, "advance_job", done=done, total=total, stage=stage)

    def succeed(self, connection: Connection[Any], after: Figures | None = None) -> Job:
        """running → succeeded. Raises PreconditionError, psycopg.Error."""
        return self._moved(connection, "end_job", state="succeeded", error=None, after=_json(after))

    def fail(self, connection: Connection[Any], error: str, after: Figures | None = None) -> Job:
        """→ failed, for a reason. Raises PreconditionError when it has ended, psycopg.Error."""
        return self._moved(connection, "end_job", state="failed", error=error, after=_json(after))

    def cancel(self, connection: Connection[Any], after: Figures | None = None) -> Job:
        """→ cancelled: the work has stopped. Raises PreconditionError when it has ended, psycopg.Error."""
        return self._moved(connection, "end_job", state="cancelled", error=None, after=_json(after))

    def _moved(self, connection: Connection[Any], query: str, **parameters: object) -> Job:
        found = rows(connection, Job, query, id=self.id, **parameters)
        if not found:
            now = Job.read(connection, self.id)
            state = f"is {now.state}" if now else "is not there any more"
            raise PreconditionError(f"job {self.id} {state}", hint="ask for a new one")
        return found[0]


def _json(figures: Figures | None) -> Jsonb | None:
    return None if figures is None else Jsonb(dict(figures))
