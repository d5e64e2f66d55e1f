"""Rows of `cdc.signals` as jobs: for who has SQL and nothing else. Who may insert there is PostgreSQL's to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from psycopg import Connection
from pydantic import BaseModel, ValidationError

from cdc.control import audit, jobs, signals
from cdc.control.signals import Signal
from consumers.gateway.admin import Backfill, Impossible, Pause, Rebuild, Repair, Resume, Snapshot, Verify

ORIGIN = "cdc.signals"
Check = Callable[[str, Mapping[str, Any]], None]
ASKED: Mapping[str, type[BaseModel]] = {
    "verify": Verify, "rebuild": Rebuild, "snapshot": Snapshot, "backfill": Backfill, "repair": Repair, "pause": Pause,
    "resume": Resume,
}  # fmt: skip


def waiting(connection: Connection[Any]) -> bool:
    """Whether there is any."""
    found = connection.execute("SELECT EXISTS (SELECT FROM cdc.signals WHERE taken_at IS NULL)").fetchone()
    return bool(found and found[0])


def taken(
    connection: Connection[Any], taker: str, most: int, before: Mapping[str, Any], check: Check
) -> Sequence[jobs.Job]:
    """At most so many signals, each a job that runs from now on, or refused with a reason; all of it or nothing.
    `check` raises Impossible for kind and arguments that cannot be."""
    with connection.transaction():
        found = [_job(connection, signal, before, check) for signal in signals.take(connection, taker, most)]
    return [job for job in found if job is not None]


def _job(connection: Connection[Any], signal: Signal, before: Mapping[str, Any], check: Check) -> jobs.Job | None:
    action = f"signal {signal.kind}"
    try:
        arguments = _arguments(signal)
        check(signal.kind, arguments)
    except (ValueError, Impossible) as error:
        signals.refuse(connection, signal.id, str(error))
        audit.write(connection, signal.asked_by, action, {}, "refused", origin=ORIGIN, reason=str(error))
        return None
    job = jobs.Job.create(connection, signal.kind, arguments, signal.asked_by)
    signals.accept(connection, signal.id, job.id)
    audit.write(connection, signal.asked_by, action, arguments, "allowed", origin=ORIGIN, job=job.id)
    return job.start(connection, before)


def _arguments(signal: Signal) -> dict[str, Any]:
    """Checked as the calls of the same names. Raises ValueError, which quotes no value."""
    if signal.kind not in ASKED:
        raise ValueError(f"the gateway does {', '.join(ASKED)} by a signal")
    try:
        return ASKED[signal.kind].model_validate(signal.arguments).model_dump(exclude_none=True)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        raise ValueError("; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in faults)) from None
