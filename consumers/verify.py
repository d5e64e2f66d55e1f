"""Comparing a store with its source, key by key: what is missing, extra or stale, and nothing that is only on its way.

A first pass finds keys that look different; each is then looked at again, closely: read the row at the source, wait
until the store has applied everything up to now, read the store, read the row again. Only when the row stayed the
same in between is the difference one. So it may run while writes go on, and needs no lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, Protocol, TypeVar

from cdc.config import Config
from consumers.freshness import Freshness
from consumers.store import Inspectable, Offsets
from consumers.topics import TableTopics, table_partitions

LOOKUP = 1000  # keys looked up at once
ROUNDS = 10  # close looks at rows that change under our eyes, before they are told apart as unsettled
POLL_SECONDS = 0.1  # between two looks at the store's offsets

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Matches = Callable[[Sequence[tuple[bytes, R]]], Awaitable[Sequence[bool]]]
CaughtUp = Callable[[bytes], Awaitable[None]]


class Source(Protocol[R_co]):
    """A table where it is written. Keys are the topics' key bytes; rows are anything that compares by `==`."""

    async def position(self) -> bytes:
        """A position (wire form) that everything read so far is at or before."""

    def rows(self) -> AsyncIterator[Sequence[tuple[bytes, R_co]]]:
        """All rows in pieces, each key once."""

    async def look(self, keys: Sequence[bytes]) -> Sequence[R_co | None]:
        """The rows of these keys as they are now, None for those that are not there."""


@dataclass
class Differences:
    """Keys by kind; `unsettled` ones changed at each look, so nothing can be said of them. `rows`: at the source."""

    missing: list[bytes] = field(default_factory=list)
    extra: list[bytes] = field(default_factory=list)
    stale: list[bytes] = field(default_factory=list)
    unsettled: list[bytes] = field(default_factory=list)
    rows: int = 0

    @property
    def equal(self) -> bool:
        """True when store and source agree in every key."""
        return not (self.missing or self.extra or self.stale or self.unsettled)


class _Comparison(Generic[R]):
    def __init__(
        self,
        store: Inspectable,
        source: Source[R],
        table: tuple[str, str],
        caught_up: CaughtUp,
        matches: Matches[R] | None,
    ) -> None:
        self._store = store
        self._source = source
        self._table = table
        self._caught_up = caught_up
        self._matches = matches
        self.found = Differences()

    async def suspects(self, on_progress: Callable[[int], None]) -> list[bytes]:
        """Keys that look different in one pass over both sides."""
        await self._caught_up(await self._source.position())
        held = {key async for key, _position in self._store.scan(*self._table)}
        suspects: list[bytes] = []
        async for rows in self._source.rows():
            self.found.rows += len(rows)
            equal = await self._equal(rows)
            suspects += [key for (key, _row), same in zip(rows, equal, strict=True) if key not in held or not same]
            held.difference_update(key for key, _row in rows)
            on_progress(self.found.rows)
        return suspects + list(held)

    async def _equal(self, rows: Sequence[tuple[bytes, R]]) -> Sequence[bool]:
        return await self._matches(rows) if self._matches is not None else [True] * len(rows)

    async def settle(self, keys: Sequence[bytes]) -> list[bytes]:
        """A close look; returns the keys whose row changed meanwhile."""
        before = await self._source.look(keys)
        await self._caught_up(await self._source.position())
        versions = await self._store.versions(*self._table, keys)
        rows = [(key, row) for key, row in zip(keys, before, strict=True) if row is not None]
        equal = {key: same for (key, _row), same in zip(rows, await self._equal(rows), strict=True)}
        after = await self._source.look(keys)
        moving: list[bytes] = []
        for key, version, row, again in zip(keys, versions, before, after, strict=True):
            held = version is not None and not version.deleted
            if row != again:
                moving.append(key)
            elif row is None:
                self.found.extra += [key] if held else []
            elif not held:
                self.found.missing.append(key)
            elif not equal[key]:
                self.found.stale.append(key)
        return moving


async def compare(
    store: Inspectable,
    source: Source[R],
    table: tuple[str, str],
    caught_up: CaughtUp,
    *,
    matches: Matches[R] | None = None,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> Differences:
    """Every difference between store and source in one table `(schema, name)`.

    `caught_up(position)` returns once the store has applied everything up to there (see `applied_in`); `matches`
    tells for `(key, row)` pairs whether the store holds that content, without it keys alone are compared.
    Raises what the store and the source raise."""
    comparison = _Comparison(store, source, table, caught_up, matches)
    suspects = await comparison.suspects(on_progress)
    for _round in range(ROUNDS):
        suspects = [key for keys in _chunks(suspects) for key in await comparison.settle(keys)]
        if not suspects:
            break
    comparison.found.unsettled = suspects
    return comparison.found


def applied_in(
    config: Config, store: str, tables: Sequence[str], offsets: Callable[[], Awaitable[Offsets]], seconds: float
) -> CaughtUp:
    """A `caught_up` for a store in another process: a heartbeat has to come that is past the position, and the
    store's `offsets` have to reach what it says. Raises TimeoutError after `seconds`."""

    async def caught_up(position: bytes) -> None:
        freshness = Freshness(config, store)
        listening = asyncio.ensure_future(freshness.listen())
        try:
            await asyncio.wait_for(_reached(config, tables, position, offsets, freshness, listening), seconds)
        finally:
            listening.cancel()
            await asyncio.wait({listening})

    return caught_up


async def _reached(
    config: Config,
    tables: Sequence[str],
    position: bytes,
    offsets: Callable[[], Awaitable[Offsets]],
    freshness: Freshness,
    listening: asyncio.Future[None],
) -> None:
    topics = TableTopics(config.kafka.prefix, tables)
    while True:
        partitions = await table_partitions(config, topics)
        held = await offsets()
        applied: Mapping[tuple[str, int], int] = {partition: held.get(partition, 0) for partition in partitions}
        known = {topic for topic, _partition in partitions}
        freshness.reached(applied, topics.__contains__, known)
        if freshness.position >= position:
            return
        if listening.done():
            await listening
        await asyncio.sleep(POLL_SECONDS)


def _chunks(keys: Iterable[bytes]) -> Iterator[list[bytes]]:
    rest = iter(keys)
    while chunk := list(islice(rest, LOOKUP)):
        yield chunk
