"""Comparing a store with its source, key by key: what is missing, extra, stale or different, and nothing that is only
on its way.

A first pass reads the source as it was at one moment, after the store has come to that moment, and finds keys that look
different. Each is then looked at again, closely: read the row at the source, wait until the store has applied
everything up to now, read the store, read the row again. Only when the row stayed the same in between is the difference
one. So it may run while writes go on, and needs no lock. How content is compared is the `Content`'s affair.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, NamedTuple, Protocol, TypeVar

from consumers.stamps import Stamps
from consumers.store import Inspectable, Version

LOOKUP = 20_000  # keys looked at closely at once: each time the store has to catch up
ROUNDS = 10  # close looks at rows that change under our eyes, before they are told apart as unsettled

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
R_contra = TypeVar("R_contra", contravariant=True)
CaughtUp = Callable[[bytes], Awaitable[None]]
Newest = Callable[[Collection[bytes]], Awaitable[Mapping[bytes, "Written[R]"]]]


class Written(NamedTuple, Generic[R]):
    """What the topics hold of a key: its newest position, and the row (None: deleted)."""

    position: bytes
    row: R | None


class Source(Protocol[R_co]):
    """A table where it is written. Keys are the topics' key bytes; rows are anything that compares by `==`."""

    async def position(self) -> bytes:
        """A position (wire form) that everything read so far is at or before."""

    def rows(self) -> AsyncIterator[Sequence[tuple[bytes, R_co]]]:
        """All rows of one moment, which has come when the first piece does, in pieces, each key once."""

    async def look(self, keys: Sequence[bytes]) -> Sequence[R_co | None]:
        """The rows of these keys as they are now, None for those that are not there."""


class Content(Protocol[R_contra]):
    """What a store holds, compared with rows of the source."""

    async def matches(self, rows: Sequence[tuple[bytes, R_contra]]) -> Sequence[bool]:
        """Whether the store holds exactly that under each key; False too where it holds nothing."""

    def others(self) -> AsyncIterator[bytes]:
        """Keys of live records that `matches` was not asked about so far."""


class Structure(NamedTuple):
    """What a store holds beside its records and is wrong, each of one moment: keys that it concerns, and `faults`, a
    sentence with its remedy for what concerns no key."""

    different: Sequence[bytes] = ()
    extra: Sequence[bytes] = ()
    faults: Sequence[str] = ()


class KeysOnly(Generic[R]):
    """The Content of a store of which only keys are compared."""

    def __init__(self, store: Inspectable, table: tuple[str, str]) -> None:
        self._store, self._table = store, table
        self._seen: set[bytes] = set()

    async def matches(self, rows: Sequence[tuple[bytes, R]]) -> list[bool]:
        """Whether there is a live record."""
        keys = [key for key, _row in rows]
        self._seen.update(keys)
        return [held(version) for version in await self._store.versions(*self._table, keys)]

    async def others(self) -> AsyncIterator[bytes]:
        """See Content."""
        async for key, _position in self._store.scan(*self._table):
            if key not in self._seen:
                yield key


@dataclass
class Differences:
    """Keys by kind. `stale`: the store holds what the row was before; `different`: it holds what the row never was in
    the version it says. `unsettled` ones changed at each look, and the store followed: nothing more can be said of
    them, and it is no difference. `faults`: see Structure. `rows`: looked at in the source as it was at `position`."""

    missing: list[bytes] = field(default_factory=list)
    extra: list[bytes] = field(default_factory=list)
    stale: list[bytes] = field(default_factory=list)
    different: list[bytes] = field(default_factory=list)
    unsettled: list[bytes] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    rows: int = 0
    position: bytes | None = None

    @property
    def equal(self) -> bool:
        """True when store and source agree in every key that could be settled."""
        return not (self.missing or self.extra or self.stale or self.different or self.faults)

    def add(self, structure: Structure) -> None:
        """Keys that were found already stay what they are."""
        known = {*self.missing, *self.extra, *self.stale, *self.different}
        self.extra += sorted(set(structure.extra) - known)
        self.different += sorted(set(structure.different) - known - set(structure.extra))
        self.faults += structure.faults


class _Look(NamedTuple, Generic[R]):
    """A key that could not be settled: the store's version at the first look, and what the last one found."""

    first: Version | None
    version: Version | None
    row: R | None


class _Comparison(Generic[R]):
    def __init__(
        self,
        store: Inspectable,
        source: Source[R],
        table: tuple[str, str],
        caught_up: CaughtUp,
        content: Content[R],
        share: Callable[[], float],
        stamps: Stamps | None,
    ) -> None:
        self._store, self._source, self._table = store, source, table
        self._caught_up, self._content, self._share, self._stamps = caught_up, content, share, stamps
        self.found = Differences()
        self.moving: dict[bytes, _Look[R]] = {}
        self.unlike: dict[bytes, Version] = {}  # other content than at the source: stale or different
        self.misstamped: set[bytes] = set()  # or its content under another version

    async def suspects(self, on_progress: Callable[[int], None]) -> list[bytes]:
        """Keys that look different in one pass over both sides. While a piece is compared the next is fetched."""
        suspects: list[bytes] = []
        pieces = self._source.rows()
        coming = asyncio.ensure_future(_next(pieces))
        try:
            rows = await coming
            self.found.position = await self._source.position()
            await self._caught_up(self.found.position)
            while rows:
                coming = asyncio.ensure_future(_next(pieces))
                equal = await self._matches(rows)
                suspects += [key for (key, _row), same in zip(rows, equal, strict=True) if not same]
                self.found.rows += len(rows)
                on_progress(self.found.rows)
                rows = await coming
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        share = self._share()
        return suspects + [key async for key in self._content.others() if share == 1 or random.random() < share]

    async def _matches(self, rows: Sequence[tuple[bytes, R]]) -> Sequence[bool]:
        equal = await self._content.matches(rows)
        if self._stamps is None:
            return equal
        stamped = await self._stamps.as_written([key for key, _row in rows])
        return [same and sound for same, sound in zip(equal, stamped, strict=True)]

    async def settle(self, keys: Sequence[bytes]) -> list[bytes]:
        """A close look; returns the keys of which nothing can be said yet."""
        if self._stamps is not None:
            await self._stamps.note(keys)
        before = await self._source.look(keys)
        await self._caught_up(await self._source.position())
        wrong = await self._stamps.wrong(keys) if self._stamps is not None else set()
        versions = await self._store.versions(*self._table, keys)
        equal = await self._equal(zip(keys, before, strict=True))
        after = await self._source.look(keys)
        moved = [(key, old, row) for key, old, row in zip(keys, before, after, strict=True) if row != old]
        arrived = await self._equal((key, row) for key, _old, row in moved)
        passing = await self._equal((key, old) for key, old, _row in moved)
        for key, version, row, again in zip(keys, versions, before, after, strict=True):
            if row == again:
                self.moving.pop(key, None)
                self._judge(key, version, row, equal.get(key, False), key in wrong)
            elif any(found.get(key, False) for found in (equal, arrived, passing)):  # at the source a moment ago
                self.moving.pop(key, None)
            else:
                first = self.moving[key].first if key in self.moving else version
                self.moving[key] = _Look(first, version, again)
        return [key for key in keys if key in self.moving]

    async def _equal(self, pairs: Iterable[tuple[bytes, R | None]]) -> dict[bytes, bool]:
        rows = [(key, row) for key, row in pairs if row is not None]
        return dict(zip((key for key, _row in rows), await self._content.matches(rows), strict=True)) if rows else {}

    def _judge(self, key: bytes, version: Version | None, row: R | None, same: bool, misstamped: bool = False) -> None:
        if row is None:
            self.found.extra += [key] if held(version) else []
        elif version is None or version.deleted:
            self.found.missing += [] if same else [key]
        elif not same or misstamped:
            self.unlike[key] = version
            self.misstamped.update([key] if same else [])

    def give_up(self) -> None:
        """What still moves: in order where the store's version moved along, else a difference."""
        for key, (first, version, row) in self.moving.items():
            if version != first:
                self.found.unsettled.append(key)
            else:
                self._judge(key, version, row, same=False)

    async def tell_apart(self, newest: Newest[R] | None) -> None:
        """Stale is what is older than the topics say, or what they say although the source says otherwise."""
        written = await newest(self.unlike) if newest is not None and self.unlike else {}
        as_written = await self._equal((key, record.row) for key, record in written.items())
        for key, version in self.unlike.items():
            older = key in written and version.position < written[key].position
            behind = as_written.get(key, False) and key not in self.misstamped
            kind = self.found.stale if older or behind else self.found.different
            kind.append(key)


async def compare(
    store: Inspectable,
    source: Source[R],
    table: tuple[str, str],
    caught_up: CaughtUp,
    *,
    content: Content[R] | None = None,
    newest: Newest[R] | None = None,
    share: Callable[[], float] = lambda: 1.0,
    stamps: Stamps | None = None,
    structure: Callable[[], Awaitable[Structure]] | None = None,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> Differences:
    """Every difference between store and source in one table `(schema, name)`.

    `caught_up(position)` returns once the store has applied everything up to there (see consumers.applied); without
    `content` keys alone are compared, without `newest` nothing counts as stale. `share` is asked, after the source's
    rows, which part of the store's other keys to look at. Without `stamps` versions are not compared with the topic's,
    without `structure` nothing beside the records. Raises what the store and the source raise."""
    comparison = _Comparison(store, source, table, caught_up, content or KeysOnly(store, table), share, stamps)
    suspects = await comparison.suspects(on_progress)
    for _round in range(ROUNDS):
        suspects = [key for keys in _chunks(suspects) for key in await comparison.settle(keys)]
        if not suspects:
            break
    comparison.give_up()
    await comparison.tell_apart(newest)
    if structure is not None:
        comparison.found.add(await structure())
    return comparison.found


async def _next(pieces: AsyncIterator[Sequence[tuple[bytes, R]]]) -> Sequence[tuple[bytes, R]]:
    """The next piece, an empty one at the end. (`anext` with a default cannot be a task in Python 3.11.)"""
    try:
        return await anext(pieces)
    except StopAsyncIteration:
        return ()


def held(version: Version | None) -> bool:
    """Whether that is the version of a live record."""
    return version is not None and not version.deleted


def _chunks(keys: Iterable[bytes]) -> Iterator[list[bytes]]:
    rest = iter(keys)
    while chunk := list(islice(rest, LOOKUP)):
        yield chunk
