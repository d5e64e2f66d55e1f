"""`GET /sync-status`: when each store last held everything of each table, against the freshness objective."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from pydantic import BaseModel

from cdc.errors import CdcError
from consumers.gateway.parts import Parts, StoreView
from consumers.gateway.stats import Paused, Statistics, paused


class Sync(BaseModel):
    """One table in one store. `last_sync`: it held everything that had committed until then; absent, and stale, when
    nobody can tell, with the reason."""

    store: str
    table: str
    last_sync: datetime | None
    age_seconds: float | None
    is_stale: bool
    reason: str | None = None


class SyncStatus(BaseModel):
    """`all_fresh` also needs something to be there: no table, nothing fresh."""

    objective_seconds: float
    syncs: list[Sync]
    stale_count: int
    all_fresh: bool
    paused: dict[str, Paused]


async def sync_status(parts: Parts, statistics: Statistics) -> SyncStatus:
    """Asked of the stores now."""
    tables = await statistics.tables()
    found = await asyncio.gather(*(_store(parts, view, [t for t in tables if view.keeps(t)]) for view in parts.stores))
    syncs = [sync for store in found for sync in store]
    stale = sum(sync.is_stale for sync in syncs)
    return SyncStatus(
        objective_seconds=parts.objective_seconds,
        syncs=syncs,
        stale_count=stale,
        all_fresh=bool(syncs) and not stale,
        paused=paused(parts),
    )


async def _store(parts: Parts, view: StoreView, tables: list[str]) -> list[Sync]:
    try:
        offsets = await view.offsets()
    except CdcError as error:
        return [_unknown(view.name, table, str(error)) for table in tables]
    found = []
    for table in tables:
        place = parts.timeline.place(offsets, [table])
        age = place.age()
        if place.fresh_until is None or age is None:
            found.append(_unknown(view.name, table, "older than every heartbeat known; is the reader running?"))
            continue
        at = datetime.fromtimestamp(place.fresh_until, UTC)
        stale = age > parts.objective_seconds
        found.append(Sync(store=view.name, table=table, last_sync=at, age_seconds=age, is_stale=stale))
    return found


def _unknown(store: str, table: str, reason: str) -> Sync:
    return Sync(store=store, table=table, last_sync=None, age_seconds=None, is_stale=True, reason=reason)
