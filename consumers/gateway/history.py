"""How fresh the stores were during the last hour, and how many records a second go where.

Looked at again and again beside the answering, so it is known since the gateway started, and only since then. A store
that could not be asked has no age at that moment: that is a gap, and no 0.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from cdc import log
from cdc.errors import CdcError
from consumers.gateway.parts import Parts, StoreView
from consumers.gateway.stats import Statistics

LOG = log.get(__name__)

SAMPLE_SECONDS = 5.0
KEPT_SECONDS = 3600.0


class Process(NamedTuple):
    """What a process tells of itself. `records` since it started; `oldest_letter` in Unix seconds. None: unknown."""

    records: float | None = None
    open_letters: int | None = None
    oldest_letter: float | None = None


class Board(Protocol):
    """What processes tell. Raises ConnectError."""

    async def process(self, name: str) -> Process:
        """`name` is reader, redis or faiss."""


class Seen(NamedTuple):
    """A process, or the reason why it tells nothing."""

    told: Process | None
    reason: str | None


class Sample(NamedTuple):
    """One look, at Unix seconds: seconds each store was behind, None where nobody could tell; the processes."""

    at: float
    ages: Mapping[str, float | None]
    processes: Mapping[str, Seen]


class History:
    """Run `look` every SAMPLE_SECONDS."""

    def __init__(self, parts: Parts, statistics: Statistics, board: Board) -> None:
        self._parts, self._statistics, self._board = parts, statistics, board
        self._told: dict[str, str] = {}  # why a store had no age, last
        self.samples: deque[Sample] = deque(maxlen=int(KEPT_SECONDS / SAMPLE_SECONDS))

    async def look(self) -> None:
        """One more sample. What cannot be asked is in it as that."""
        tables = await self._statistics.tables()
        views = self._parts.stores
        names = ("reader", *(view.name for view in views))
        asked = asyncio.gather(*(self._age(view, [t for t in tables if view.keeps(t)]) for view in views))
        processes = await asyncio.gather(*(self._process(name) for name in names))
        ages = dict(zip([view.name for view in views], await asked, strict=True))
        self.samples.append(Sample(time.time(), ages, dict(zip(names, processes, strict=True))))

    def rate(self, name: str) -> float | None:
        """Records a second of a process between the last two looks; None while it cannot be told."""
        if len(self.samples) < 2:
            return None
        before, now = self.samples[-2], self.samples[-1]
        first, last = (sample.processes[name].told for sample in (before, now))
        if first is None or last is None or first.records is None or last.records is None:
            return None
        made = last.records - first.records
        return made / (now.at - before.at) if made >= 0 else None  # less than before: the process started anew

    async def _age(self, view: StoreView, tables: list[str]) -> float | None:
        try:
            return self._parts.timeline.place(await view.offsets(), tables).age()
        except CdcError as error:
            if self._told.get(view.name) != str(error):
                LOG.info("nobody can tell how fresh a store is", store=view.name, reason=str(error))
            self._told[view.name] = str(error)
            return None

    async def _process(self, name: str) -> Seen:
        try:
            return Seen(await self._board.process(name), None)
        except CdcError as error:
            return Seen(None, str(error))
