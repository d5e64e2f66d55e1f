"""Administrative calls in `cdc.audit`, refused ones included. Rows are added and never changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from uuid import UUID

from psycopg import Connection
from psycopg.types.json import Jsonb

from cdc.control.queries import run

Outcome = Literal["allowed", "refused", "failed"]


def write(
    connection: Connection[Any],
    actor: str,
    action: str,
    arguments: Mapping[str, Any],
    outcome: Outcome,
    *,
    origin: str | None = None,
    reason: str | None = None,
    job: UUID | None = None,
) -> int:
    """One call; its id. `origin`: a network address, or the command. `reason` is needed unless it was allowed. No
    secrets in `arguments`. Raises psycopg.errors.CheckViolation without a reason, psycopg.Error."""
    found = run(
        connection,
        "write_audit",
        actor=actor,
        origin=origin,
        action=action,
        arguments=Jsonb(dict(arguments)),
        outcome=outcome,
        reason=reason,
        job_id=job,
    )
    return int(found[0][0])
