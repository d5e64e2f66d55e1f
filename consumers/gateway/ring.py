"""The newest changes, held once for all clients that are up to date.

It is bounded, so a client that is too slow falls off its end and is told so. That slows down nobody and costs nobody
else a change.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from operator import attrgetter

from consumers.gateway.changes import Change
from consumers.store import Partition

CHANGES = 20_000  # half a second of the fastest reader, minutes of a usual one
BYTES = 32 << 20
SPARE = 0.25  # is let go at once, so that the list is not shifted for each change

_position = attrgetter("position")


class Ring:
    """Every change above `floor` and at or below `top`. `ends` lie behind all of those at or below `sealed`."""

    def __init__(self, top: bytes, changes: int = CHANGES, nbytes: int = BYTES) -> None:
        self.floor = self.top = self.sealed = top
        self.ends: Mapping[Partition, int] = {}
        self.closed: str | None = None  # the reason
        self._changes: list[Change] = []
        self._nbytes = 0
        self._bounds = changes, nbytes
        self._came = asyncio.Event()

    def add(self, changes: Sequence[Change]) -> None:
        """In order, each above `top`."""
        if changes:
            self._changes += changes
            self._nbytes += sum(change.nbytes for change in changes)
            self.top = changes[-1].position
            self._bound()
            self._wake()

    def seal(self, top: bytes, ends: Mapping[Partition, int]) -> None:
        """Everything at or below `top` was added, and lies below `ends`."""
        self.top = self.sealed = max(self.top, top)
        self.ends = dict(ends)
        self._wake()

    def close(self, reason: str) -> None:
        """Nothing comes any more."""
        self.closed = self.closed or reason
        self._wake()

    def since(self, after: bytes, most: int) -> Sequence[Change] | None:
        """The next changes above `after`; None when some of them are held no more."""
        if after < self.floor:
            return None
        start = bisect_right(self._changes, after, key=_position)
        return self._changes[start : start + most]

    async def reached(self, position: bytes) -> None:
        """Returns when `top` is at the position or above. The caller bounds the time."""
        while self.top < position and self.closed is None:
            await self._came.wait()

    async def beyond(self, after: bytes) -> None:
        """Returns when there is something above `after`, or never will be. The caller bounds the time."""
        while self.top <= after and self.closed is None:
            await self._came.wait()

    def _bound(self) -> None:
        changes, nbytes = self._bounds
        if len(self._changes) <= changes and self._nbytes <= nbytes:
            return
        gone = 0
        while len(self._changes) - gone > changes * (1 - SPARE) or self._nbytes > nbytes * (1 - SPARE):
            self._nbytes -= self._changes[gone].nbytes
            gone += 1
        self.floor = self._changes[gone - 1].position
        del self._changes[:gone]

    def _wake(self) -> None:
        self._came.set()
        self._came = asyncio.Event()
