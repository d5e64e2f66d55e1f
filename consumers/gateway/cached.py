"""An answer that costs a walk over a store: asked at most so often, by one caller at a time, and told with its age."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from cdc.errors import CdcError

SHARE = 0.1  # of the time may go into counting: a walk over millions of records takes seconds
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked(Generic[T]):
    """`value`, or the reason why there is none; `at` in Unix seconds."""

    value: T | None
    reason: str | None
    at: float

    @property
    def age(self) -> float:
        """Seconds."""
        return max(0.0, time.time() - self.at)


class Cached(Generic[T]):
    """`ask` raises CdcError when there is no answer; that is kept as its reason, and an older answer is not shown."""

    def __init__(self, ask: Callable[[], Awaitable[T]], seconds: float, share: float = SHARE) -> None:
        self._ask = ask
        self._share = share
        self._seconds = seconds
        self.held: Asked[T] | None = None  # the last answer, however old
        self._due = 0.0  # monotonic seconds
        self._asking = asyncio.Lock()

    async def get(self, *, fresh: bool = False) -> Asked[T]:
        """What is held while it is young enough; `fresh`: asked after this call began."""
        since = time.time()
        async with self._asking:  # whoever waited for another's question takes its answer
            held = self.held
            if held is None or (held.at < since if fresh else time.monotonic() >= self._due):
                held = self.held = await self._answer()
            return held

    async def _answer(self) -> Asked[T]:
        started, at = time.monotonic(), time.time()
        answer: Asked[T]
        try:
            answer = Asked(await self._ask(), None, at)
        except CdcError as error:
            answer = Asked(None, str(error), at)
        ended = time.monotonic()
        self._due = ended + max(self._seconds, (ended - started) / self._share)
        return answer
