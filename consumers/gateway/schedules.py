"""`GET /schedules`: what runs again and again, and whether it does."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel


class Entry(BaseModel):
    """Times with zone. `age_seconds` since the last success, or since it was first asked for; `overdue`: that is more
    than two periods, and somebody is paged. `next_run` is absent while it runs as `job`; `error`: why the last run
    failed."""

    name: str
    kind: str
    period_seconds: float
    last_run: datetime | None
    last_success: datetime | None
    age_seconds: float
    next_run: datetime | None
    overdue: bool
    error: str | None
    job: UUID | None
    last_job: UUID | None


class Schedules(Protocol):
    """What is known of them. Raises ConnectError, StoreError."""

    async def read(self) -> list[Entry]:
        """By name."""


def schedules(known: Schedules) -> APIRouter:
    """Of the whole system, whichever gateway runs them."""
    router = APIRouter(tags=["state"])

    @router.get("/schedules")
    async def listed() -> list[Entry]:
        """What is done again and again: when it last succeeded, and when it is due."""
        return await known.read()

    return router
