"""The gateway: what the whole system says of itself and of its records, over HTTP.

It owns no store and counts nothing itself. A store that cannot be asked is down, with its reason, and never 0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Literal

from fastapi import FastAPI, Response
from pydantic import BaseModel

from cdc import __version__
from cdc.errors import CdcError
from consumers.gateway.admin import Administration, Gate, administration
from consumers.gateway.memories import memories
from consumers.gateway.parts import Parts
from consumers.gateway.refusals import ANSWERS, HANDLERS
from consumers.gateway.searching import searching
from consumers.gateway.stats import Statistics, Stats
from consumers.gateway.sync import SyncStatus, sync_status


class Alive(BaseModel):
    """This process answers; of the stores it says nothing: see /ready and /stats."""

    status: Literal["alive"] = "alive"
    version: str = __version__


class Answer(BaseModel):
    """One dependency; `reason` when it does not answer."""

    up: bool
    reason: str | None = None


class Ready(BaseModel):
    """Every dependency."""

    ready: bool
    dependencies: dict[str, Answer]


def create_app(parts: Parts, statistics: Statistics, work: Administration, gate: Gate) -> FastAPI:
    """The application; serve it with `GatewayServer`, and run `parts.timeline.listen` beside it."""
    app = FastAPI(title="memory-cdc gateway", version=__version__, responses=ANSWERS)
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)

    @app.get("/health", tags=["state"])
    async def health() -> Alive:
        """Liveness: 200 as long as this process answers."""
        return Alive()

    @app.get("/ready", tags=["state"], responses={503: {"model": Ready}})
    async def ready(response: Response) -> Ready:
        """Which dependencies answer; 503 when one does not."""
        found = await _ready(parts)
        response.status_code = 200 if found.ready else 503
        return found

    @app.get("/stats", tags=["state"])
    async def stats() -> Stats:
        """Counts of PostgreSQL and of each store beside each other, taken from themselves, with their age."""
        return await statistics.get()

    @app.get("/sync-status", tags=["state"])
    async def sync() -> SyncStatus:
        """How fresh each store is in each table."""
        return await sync_status(parts, statistics)

    app.include_router(searching(parts))
    app.include_router(memories(parts))
    app.state.gate = gate
    app.include_router(administration(work))
    return app


async def _ready(parts: Parts) -> Ready:
    asked: dict[str, Awaitable[object]] = {"postgres": parts.source.ready(), "kafka": parts.timeline.ping()}
    asked |= {view.name: view.offsets() for view in parts.stores}
    answers = await asyncio.gather(*(_answer(question) for question in asked.values()))
    found = dict(zip(asked, answers, strict=True))
    return Ready(ready=all(answer.up for answer in answers), dependencies=found)


async def _answer(question: Awaitable[object]) -> Answer:
    try:
        await question
    except CdcError as error:
        return Answer(up=False, reason=str(error))
    return Answer(up=True)
