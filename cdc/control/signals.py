"""Requests by a row in `cdc.signals`: for who has SQL and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection
from psycopg.types.json import Jsonb

from cdc.control.queries import rows, run
from cdc.errors import PreconditionError

AT_ONCE = 10  # signals taken in one transaction


@dataclass(frozen=True, slots=True)
class Signal:
    """What somebody asks for: `kind` is snapshot, verify, repair, rebuild, backfill, pause or resume; `arguments` are
    not checked yet."""

    id: int
    kind: str
    arguments: dict[str, Any]
    asked_by: str
    asked_at: datetime


def ask(connection: Connection[Any], kind: str, arguments: Mapping[str, Any], asked_by: str) -> int:
    """Inserts a signal; its id. Raises psycopg.errors.CheckViolation for a kind there is not, psycopg.Error."""
    parameters = {"kind": kind, "arguments": Jsonb(dict(arguments)), "asked_by": asked_by}
    return int(run(connection, "ask_signal", **parameters)[0][0])


def take(connection: Connection[Any], taken_by: str, limit: int = AT_ONCE) -> list[Signal]:
    """The oldest waiting ones, each to one caller only, however many ask at once.

    Call it in a transaction (`with connection.transaction():`) together with `Job.create` and `accept` or `refuse`: so
    a process that dies in between leaves the signal waiting. Raises psycopg.Error."""
    found = rows(connection, Signal, "take_signals", taken_by=taken_by, limit=limit)
    return sorted(found, key=lambda signal: signal.id)


def accept(connection: Connection[Any], signal: int, job: UUID) -> None:
    """The work is this job's now. Raises PreconditionError when it was not taken or has an answer, psycopg.Error."""
    _answer(connection, signal, outcome="accepted", reason=None, job_id=job)


def refuse(connection: Connection[Any], signal: int, reason: str) -> None:
    """It is not done, for a reason. Raises PreconditionError, psycopg.Error."""
    _answer(connection, signal, outcome="refused", reason=reason, job_id=None)


def _answer(connection: Connection[Any], signal: int, **parameters: object) -> None:
    if not run(connection, "answer_signal", id=signal, **parameters):
        raise PreconditionError(f"signal {signal} was not taken, or has its answer", hint="take it first")
