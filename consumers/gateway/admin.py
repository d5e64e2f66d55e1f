"""Administration: long work as jobs, for who holds the key; every call is in the audit log, refused ones too.

Refused are: 403 while no key is configured, 429 too many calls, 401 another key. A call that cannot be written to the
audit log is not done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple, Protocol
from uuid import UUID

from fastapi import APIRouter, Depends, HTTPException, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field

from cdc import log
from cdc.errors import CdcError, PreconditionError
from cdc.wishes import Component
from consumers.gateway.keys import AdminKey, Rate
from consumers.gateway.records import NAME
from consumers.gateway.refusals import Refusal

LOG = log.get(__name__)

NO_KEY = "administration is closed: no key is set → set [gateway] admin_key, at best by CDC_GATEWAY__ADMIN_KEY_FILE"
OTHER_KEY = "this is not the key → send `Authorization: Bearer <key>` with the one in [gateway] admin_key"
TableName = Annotated[str, Field(pattern=NAME, max_length=128)]
Store = Literal["redis", "faiss"]
REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"description": "another key", "model": Refusal},
    403: {"description": "no key is set", "model": Refusal},
    429: {"description": "too many calls", "model": Refusal},
}


class Asked(BaseModel):
    """What a call asks for; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class Verify(Asked):
    """Everything unless a store or a table is named."""

    store: Store | None = None
    table: TableName | None = None


class Rebuild(Asked):
    """One store."""

    store: Store


class Snapshot(Asked):
    """One table."""

    table: TableName


class Backfill(Asked):
    """Rows of one table: with these keys, or that meet the condition `where`, or that are not older than `since` by a
    column of times; all of them when nothing is named. `rate` is rows a second at most."""

    table: TableName
    keys: list[Annotated[str, Field(max_length=4096)]] | None = Field(None, min_length=1, max_length=10_000)
    where: str | None = Field(None, min_length=1, max_length=10_000)
    since: str | None = Field(None, min_length=1, max_length=100)
    column: str | None = Field(None, min_length=1, max_length=63)
    rate: int | None = Field(None, ge=1, le=1 << 31)


class Repair(Verify):
    """As a verify; what differs is sent again."""


class Cache(Asked):
    """All of Redis unless a table is named."""

    table: TableName | None = None


class Resume(Asked):
    """The reader, or a store's consumer."""

    component: Component


class Pause(Resume):
    """`why` is shown beside it."""

    why: str = Field("", max_length=200)


class Job(BaseModel):
    """Times with zone; `done` of `total` units, which is absent while unknown; `before` and `after` are figures."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    kind: str
    arguments: dict[str, Any]
    asked_by: str
    state: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    stage: str | None
    done: int
    total: int | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class Impossible(PreconditionError):
    """What is asked for cannot be: a table, key or condition that there is not."""


class Caller(NamedTuple):
    """Who asks, from which address."""

    actor: str
    origin: str


class Administration(Protocol):
    """Jobs and the audit log. Raises ConnectError when they cannot be kept."""

    async def start(self, kind: str, arguments: Mapping[str, Any], caller: Caller) -> Job:
        """Begins the work. Raises Impossible, and PreconditionError while too much other work runs."""

    async def read(self, job: UUID) -> Job | None:
        """As it is now."""

    async def newest(self, limit: int) -> list[Job]:
        """The newest first."""

    async def cancel(self, job: UUID, caller: Caller) -> Job | None:
        """Asks it to stop; None when it has ended or never was."""

    async def refused(self, action: str, caller: Caller, reason: str) -> None:
        """Notes a call that was not allowed."""


class Gate:
    """Lets a call in, or says why not."""

    def __init__(self, work: Administration, key: AdminKey, rate: Rate) -> None:
        self._work, self._key, self._rate = work, key, rate

    async def admit(self, request: Request, key: str | None) -> Caller:
        """Raises HTTPException."""
        origin = request.client.host if request.client else "unknown"
        if (seconds := self._rate.wait(origin)) > 0:
            after = {"Retry-After": str(math.ceil(seconds))}
            raise HTTPException(429, f"too many calls from {origin} → wait {seconds:.0f} s", headers=after)
        if not self._key.there:
            raise await self._refusal(request, origin, 403, NO_KEY)
        if not self._key.opens(key):
            raise await self._refusal(request, origin, 401, OTHER_KEY, {"WWW-Authenticate": "Bearer"})
        return Caller("admin key", origin)

    async def _refusal(
        self, request: Request, origin: str, code: int, reason: str, headers: Mapping[str, str] | None = None
    ) -> HTTPException:
        action = request.scope["route"].path
        try:
            await self._work.refused(action, Caller("nobody", origin), reason)
        except CdcError as error:
            LOG.warning("a refused call is not in the audit log", action=action, origin=origin, reason=str(error))
        return HTTPException(code, reason, headers=dict(headers or {}))


async def _admitted(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Security(HTTPBearer(auto_error=False))]
) -> Caller:
    gate: Gate = request.app.state.gate
    return await gate.admit(request, given.credentials if given else None)


Admitted = Annotated[Caller, Depends(_admitted)]


def administration(work: Administration) -> APIRouter:
    """`POST /admin/…`, `GET /jobs`, `GET /jobs/{id}`, `POST /jobs/{id}/cancel`; `app.state.gate` lets in."""
    router = APIRouter(tags=["administration"], responses=REFUSALS)

    async def start(kind: str, asked: Asked | None, caller: Caller) -> Job:
        arguments = {} if asked is None else asked.model_dump(exclude_none=True)
        try:
            return await work.start(kind, arguments, caller)
        except Impossible as error:
            await work.refused(f"/admin/{kind}", caller, str(error))
            raise HTTPException(422, str(error)) from error
        except PreconditionError as error:
            raise HTTPException(409, str(error)) from error

    @router.post("/admin/refresh-stats", status_code=202)
    async def refresh_stats(caller: Admitted) -> Job:
        """Counts everything again."""
        return await start("refresh-stats", None, caller)

    @router.post("/admin/verify", status_code=202)
    async def verify(asked: Verify, caller: Admitted) -> Job:
        """Compares stores with PostgreSQL, key by key."""
        return await start("verify", asked, caller)

    @router.post("/admin/rebuild", status_code=202)
    async def rebuild(asked: Rebuild, caller: Admitted) -> Job:
        """Fills a store anew from the topics, beside the live one, and swaps."""
        return await start("rebuild", asked, caller)

    @router.post("/admin/snapshot", status_code=202)
    async def snapshot(asked: Snapshot, caller: Admitted) -> Job:
        """Sends all rows of a table again."""
        return await start("snapshot", asked, caller)

    @router.post("/admin/backfill", status_code=202)
    async def backfill(asked: Backfill, caller: Admitted) -> Job:
        """Sends some rows of a table again; a key without a row becomes a delete."""
        return await start("backfill", asked, caller)

    @router.post("/admin/repair", status_code=202)
    async def repair(asked: Repair, caller: Admitted) -> Job:
        """Compares stores with PostgreSQL, sends what differs again, and compares once more."""
        return await start("repair", asked, caller)

    @router.post("/admin/pause", status_code=202)
    async def pause(asked: Pause, caller: Admitted) -> Job:
        """Lets the reader or a store's consumer stand still, until it is resumed."""
        return await start("pause", asked, caller)

    @router.post("/admin/resume", status_code=202)
    async def resume(asked: Resume, caller: Admitted) -> Job:
        """Lets it go on."""
        return await start("resume", asked, caller)

    @router.delete("/admin/cache", status_code=202)
    async def clear_cache(caller: Admitted, asked: Cache | None = None) -> Job:
        """Removes our records from Redis, which fills again from the topics."""
        return await start("clear-cache", asked, caller)

    @router.get("/jobs")
    async def jobs(caller: Admitted) -> list[Job]:
        """The newest hundred."""
        return await work.newest(100)

    @router.get("/jobs/{job}")
    async def one(job: UUID, caller: Admitted) -> Job:
        """How far it is."""
        return _there(await work.read(job))

    @router.post("/jobs/{job}/cancel")
    async def cancel(job: UUID, caller: Admitted) -> Job:
        """Asks it to stop; it ends at its next step."""
        return _there(await work.cancel(job, caller))

    return router


def _there(job: Job | None) -> Job:
    if job is None:
        raise HTTPException(404, "there is no such job, or it has ended")
    return job
