"""`GET /overview`: all that the status page shows, in one answer, taken once a second however many look."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Literal, NamedTuple, Protocol
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from cdc.errors import CdcError
from consumers.gateway.admin import Administration
from consumers.gateway.cached import Cached
from consumers.gateway.history import History, Seen
from consumers.gateway.parts import Parts
from consumers.gateway.stats import Statistics, Stats

SECONDS = 1.0  # an answer is for all who ask within that time
JOBS = 8  # as many as the page has room for


class Flow(BaseModel):
    """A process on the path. `records_per_second` is absent while it cannot be told; `reason` why it tells nothing."""

    up: bool
    reason: str | None = None
    records_per_second: float | None = None


class Letters(BaseModel):
    """Dead letters of a store that are open; absent, with the reason, while its consumer does not tell."""

    open: int | None = None
    oldest_age_seconds: float | None = None
    reason: str | None = None


class PublicJob(BaseModel):
    """A job, without what was asked for, by whom, and what came of it."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    kind: str
    state: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    stage: str | None
    done: int
    total: int | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class Verified(BaseModel):
    """The last comparison of a store and a table. `share` of the rows; counts of keys. `failed`: it did not end."""

    model_config = ConfigDict(from_attributes=True)

    store: str
    table: str
    ended_at: datetime
    equal: bool
    failed: bool
    rows: int
    share: float
    missing: int
    extra: int
    stale: int
    different: int
    unsettled: int


class Jobs(BaseModel):
    """The newest first, or why they are not known."""

    jobs: list[PublicJob] | None = None
    reason: str | None = None


class Verifies(BaseModel):
    """One a store and table that was ever compared, or why they are not known."""

    runs: list[Verified] | None = None
    reason: str | None = None


class Freshness(BaseModel):
    """Seconds behind, by store, at each of `at` (Unix seconds); None where nobody could tell."""

    at: list[float]
    ages: dict[str, list[float | None]]


class Overview(BaseModel):
    """The page. `table` is searched, `text_column` of it read; `heartbeat_age_seconds`: of the newest in Kafka."""

    time: float
    table: str
    text_column: str | None
    objective_seconds: float
    stats: Stats
    kafka: Flow
    heartbeat_age_seconds: float | None
    flows: dict[str, Flow]
    freshness: Freshness
    letters: dict[str, Letters]
    jobs: Jobs
    verifies: Verifies


class Comparisons(Protocol):
    """Who keeps what verifies found. Raises ConnectError, StoreError."""

    async def newest(self) -> Sequence[Verified]:
        """Of each store and table."""


class Scene(NamedTuple):
    """What an overview is made of."""

    parts: Parts
    statistics: Statistics
    history: History
    work: Administration
    comparisons: Comparisons
    text_column: str | None


def overview(scene: Scene) -> APIRouter:
    """`GET /overview`."""
    router = APIRouter(tags=["state"])
    cached = Cached(lambda: _look(scene), SECONDS, share=1)  # the counts in it are kept for as long as they cost

    @router.get("/overview")
    async def look() -> Overview:
        """What the status page shows."""
        found = await cached.get()
        assert found.value is not None  # every part is asked by itself, and is down by itself
        return found.value

    return router


async def _look(scene: Scene) -> Overview:
    parts, history = scene.parts, scene.history
    stats, kafka = await scene.statistics.get(), await _kafka(parts)
    jobs, verifies = await _jobs(scene.work), await _verifies(scene.comparisons)  # what takes time is asked first
    heartbeat = parts.timeline.newest
    latest = history.samples[-1].processes if history.samples else {}
    return Overview(
        time=time.time(),
        table=parts.table,
        text_column=scene.text_column,
        objective_seconds=parts.objective_seconds,
        stats=stats,
        kafka=kafka,
        heartbeat_age_seconds=None if heartbeat is None else max(0.0, time.time() - heartbeat.ts_us / 1e6),
        flows={name: _flow(seen, history.rate(name)) for name, seen in latest.items()},
        freshness=_freshness(history),
        letters={view.name: _letters(latest.get(view.name)) for view in parts.stores},
        jobs=jobs,
        verifies=verifies,
    )


async def _kafka(parts: Parts) -> Flow:
    reason = await _reason(parts.timeline.ping)
    return Flow(up=reason is None, reason=reason)


async def _reason(ask: Callable[[], Awaitable[object]]) -> str | None:
    try:
        await ask()
    except CdcError as error:
        return str(error)
    return None


def _flow(seen: Seen, rate: float | None) -> Flow:
    return Flow(up=seen.told is not None, reason=seen.reason, records_per_second=rate)


def _freshness(history: History) -> Freshness:
    samples = list(history.samples)
    names = samples[-1].ages if samples else ()
    ages = {name: [_rounded(sample.ages.get(name)) for sample in samples] for name in names}
    return Freshness(at=[round(sample.at, 1) for sample in samples], ages=ages)


def _rounded(age: float | None) -> float | None:
    return None if age is None else round(age, 3)


def _letters(seen: Seen | None) -> Letters:
    if seen is None:
        return Letters(reason="not asked yet")
    if seen.told is None or seen.told.open_letters is None:
        return Letters(reason=seen.reason or "its consumer has not read them yet")
    oldest = seen.told.oldest_letter
    return Letters(open=seen.told.open_letters, oldest_age_seconds=None if oldest is None else time.time() - oldest)


async def _jobs(work: Administration) -> Jobs:
    try:
        return Jobs(jobs=[PublicJob.model_validate(job) for job in await work.newest(JOBS)])
    except CdcError as error:
        return Jobs(reason=str(error))


async def _verifies(comparisons: Comparisons) -> Verifies:
    try:
        return Verifies(runs=list(await comparisons.newest()))
    except CdcError as error:
        return Verifies(reason=str(error))
