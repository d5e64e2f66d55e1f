"""`GET /stats`: counts side by side, from PostgreSQL and from each store, and whether they agree.

A count is a walk, so it is kept for some seconds, and its age is told. Two counts are never of one moment. What may lie
between them is bounded: every record of the topic behind what both had for certain can make a difference of one.
A larger difference is none of lag, and the answer is `degraded`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel

from cdc import __version__
from cdc.errors import CdcError
from cdc.position import format_lsn
from consumers.gateway.cached import Asked, Cached
from consumers.gateway.exported import export
from consumers.gateway.filling import filled
from consumers.gateway.parts import Counts, Parts, SourceLook, StoreLook, StoreView
from consumers.gateway.timeline import Place
from consumers.store import Offsets, Partition

VISIBLE_SECONDS = 1.0  # a commit of that age is seen by every new snapshot; before that it may have only been decided
PASS_SECONDS = 3.0  # for a heartbeat to come through a pipeline that works; it takes milliseconds
UNTOLD = (
    f"its counts differ from PostgreSQL's, and no heartbeat came through within {PASS_SECONDS:g} s to tell whether lag "
    "explains that: is the reader running?"
)
T = TypeVar("T")


class Counted(BaseModel):
    """What was counted, when (Unix seconds), and how old that is. Without tables it is down, for this reason."""

    up: bool
    reason: str | None = None
    tables: dict[str, Counts] | None = None
    counted_at: float
    counted_age_seconds: float


class SourceStats(Counted):
    """PostgreSQL; `lsn` is its WAL's end when it was counted."""

    lsn: str | None = None


class StoreStats(Counted):
    """A store: its size, and how far it is right now. `lag_records` are in the topics and not yet applied;
    `unexplained` by table: records by which its count differs from PostgreSQL's beyond what lag explains, absent while
    nobody can tell. `filled` is there while it is being filled, as a new or a flushed one is: the share of the topics
    it has; its counts grow."""

    memory_bytes: int | None = None
    disk_bytes: int | None = None
    notes: dict[str, Any] = {}
    watermark: str | None = None
    fresh_until: float | None = None
    age_seconds: float | None = None
    lag_records: int | None = None
    filled: float | None = None
    unexplained: dict[str, int] | None = None


class Paused(BaseModel):
    """Who wants a component to stand still, since when, and why."""

    by: str
    since: datetime
    why: str


class Stats(BaseModel):
    """`status`: ok; `degraded` when a store is behind the objective or disagrees, or something is down or stands still:
    `reasons`. `paused` by component: the reader, a store."""

    status: Literal["ok", "degraded"]
    reasons: list[str]
    version: str
    source: SourceStats
    stores: dict[str, StoreStats]
    paused: dict[str, Paused]


def paused(parts: Parts) -> dict[str, Paused]:
    """Whoever stands still, by component."""
    found = parts.wishes.all_paused()
    return {name: Paused(by=w.by, since=datetime.fromtimestamp(w.at, UTC), why=w.why) for name, w in found.items()}


class Unlike(NamedTuple):
    """Two counts of one table, and how much of their difference lag explains at most."""

    held: int
    wanted: int
    explained: int

    @property
    def beyond(self) -> int:
        """Records that lag does not explain."""
        return max(0, abs(self.held - self.wanted) - self.explained)


class Statistics:
    """Asks all parts; keeps the counts."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._source = Cached(parts.source.look, parts.stats_seconds)
        self._stores = {view.name: Cached(self._look(view), parts.stats_seconds) for view in parts.stores}

    def _look(self, view: StoreView) -> Any:
        async def look() -> StoreLook:
            return await view.look([table for table in await self.tables() if view.keeps(table)])

        return look

    async def tables(self) -> list[str]:
        """Every table that travels, by the topics and the last count; only when neither tells any is it counted."""
        known = set(self._parts.timeline.tables())
        source = self._source.held if known or self._source.held else await self._source.get()
        return sorted(known | set(source.value.tables if source and source.value else ()))

    def known(self, store: str, table: str) -> int | None:
        """Records at the last count, without asking; None when there was none."""
        held = self._stores[store].held
        counts = None if held is None or held.value is None else held.value.tables.get(table)
        return None if counts is None else counts.records

    async def get(self, *, fresh: bool = False) -> Stats:
        """Never raises CdcError: what cannot be asked is down, also when it still answered a second ago."""
        source = await _alive(self._source, self._parts.source.ping, fresh)
        found = await asyncio.gather(*(self._store(view, source, fresh) for view in self._parts.stores))
        reasons = [] if source.value is not None else [f"postgres is down: {source.reason}"]
        reasons += [reason for _, said in found for reason in said]
        reasons += [f"{name} is {wish.said}" for name, wish in self._parts.wishes.all_paused().items()]
        stats = Stats(
            status="degraded" if reasons else "ok",
            reasons=reasons,
            version=__version__,
            source=_source_stats(source),
            stores={view.name: stats for view, (stats, _) in zip(self._parts.stores, found, strict=True)},
            paused=paused(self._parts),
        )
        export(stats)
        return stats

    async def _store(self, view: StoreView, source: Asked[SourceLook], fresh: bool) -> tuple[StoreStats, list[str]]:
        offsets: dict[Partition, int] = {}

        async def answers() -> None:
            offsets.update(await view.offsets())

        look = await _alive(self._stores[view.name], answers, fresh)
        if look.value is None:
            return _store_stats(look, Place(), None), [f"{view.name} is down: {look.reason}"]
        tables = list(look.value.tables)
        place = self._parts.timeline.place(offsets, tables)
        try:
            lag = _behind(offsets, await self._parts.timeline.ends(tables))
        except CdcError as error:
            return _store_stats(look, place, None), [f"{view.name}: {error}"]
        stats = _store_stats(look, place, lag)
        stats.filled = filled(self._parts.timeline, offsets, tables, self._parts.objective_seconds)
        reasons = self._late(view.name, place, stats.filled)
        unlike = await self._unlike(view, look.value, source.value) if source.value is not None else None
        if source.value is not None and unlike is None:
            reasons.append(f"{view.name}: {UNTOLD}")
        elif unlike is not None:
            stats.unexplained = dict.fromkeys(tables, 0) | {table: found.beyond for table, found in unlike.items()}
            reasons += [_sentence(view.name, table, found) for table, found in unlike.items() if found.beyond]
        return stats, reasons

    def _late(self, name: str, place: Place, share: float | None) -> list[str]:
        if share is not None:
            return [f"{name} is being filled: it has {share:.0%} of the topics, its counts are no truth yet"]
        age, objective = place.age(), self._parts.objective_seconds
        if age is None:
            return [f"{name}: nobody can tell how fresh it is; is the reader running?"]
        return [f"{name} is {age:.1f} s behind, the objective is {objective:g} s"] if age > objective else []

    async def _unlike(self, view: StoreView, look: StoreLook, source: SourceLook) -> dict[str, Unlike] | None:
        """None while nobody can tell: the topics lack what was counted."""
        unlike: dict[str, tuple[int, int]] = {}
        for table, held in look.tables.items():
            wanted = source.tables.get(table)
            fewer = wanted is not None and held.records < wanted.records and view.expires(table)
            if wanted is not None and held.records != wanted.records and not fewer:
                unlike[table] = held.records, wanted.records
        if not unlike:
            return {}
        ends = await self._ends_since()
        if ends is None:
            return None
        before = self._parts.timeline.before(source.began - VISIBLE_SECONDS)
        found = {}
        for table, (held_records, wanted_records) in unlike.items():
            places = self._parts.timeline.partitions([table])
            explained = sum(max(0, _end(ends, at) - min(look.offsets.get(at, 0), _end(before, at))) for at in places)
            found[table] = Unlike(held_records, wanted_records, explained)
        return found

    async def _ends_since(self) -> Mapping[str, list[int]] | None:
        """The topics' ends behind everything counted so far: those of a heartbeat that was asked for since. None when
        it does not come through."""
        timeline = self._parts.timeline
        try:
            lsn = await self._parts.source.nudge()
            async with asyncio.timeout(PASS_SECONDS):
                await timeline.passed(lsn)
        except (CdcError, TimeoutError):
            return None
        return timeline.newest.ends if timeline.newest else None


async def _alive(cached: Cached[T], answers: Callable[[], Awaitable[None]], fresh: bool) -> Asked[T]:
    """What was counted, as long as the place it was counted in answers now."""
    try:
        await answers()
    except CdcError as error:
        return Asked(None, str(error), time.time())
    return await cached.get(fresh=fresh)


def _sentence(name: str, table: str, unlike: Unlike) -> str:
    return (
        f"{name} holds {unlike.held} records of {table}, PostgreSQL {unlike.wanted}; lag explains {unlike.explained} "
        "at most: `cdc verify` names them"
    )


def _end(ends: Mapping[str, list[int]], partition: tuple[str, int]) -> int:
    topic, number = partition
    known = ends.get(topic, ())
    return known[number] if number < len(known) else 0


def _behind(offsets: Offsets, ends: Offsets) -> int:
    return sum(max(0, end - offsets.get(place, 0)) for place, end in ends.items())


def _source_stats(source: Asked[SourceLook]) -> SourceStats:
    look = source.value
    return SourceStats(
        up=look is not None,
        reason=source.reason,
        tables=None if look is None else dict(look.tables),
        counted_at=source.at,
        counted_age_seconds=source.age,
        lsn=None if look is None else format_lsn(look.lsn),
    )


def _store_stats(asked: Asked[StoreLook], place: Place, lag: int | None) -> StoreStats:
    look = asked.value
    return StoreStats(
        up=look is not None,
        reason=asked.reason,
        tables=None if look is None else dict(look.tables),
        counted_at=asked.at,
        counted_age_seconds=asked.age,
        memory_bytes=None if look is None else look.memory_bytes,
        disk_bytes=None if look is None else look.disk_bytes,
        notes={} if look is None else dict(look.notes),
        watermark=place.lsn,
        fresh_until=place.fresh_until,
        age_seconds=place.age(),
        lag_records=lag,
    )
