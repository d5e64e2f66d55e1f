"""No more than so many rows a second, on average."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


class Pace:
    """Shared by the workers of one table; `rate` None lets all pass. A pause is never made up for by a burst."""

    def __init__(
        self,
        rate: int | None,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate, self._sleep, self._clock = rate, sleep, clock
        self._due = 0.0

    async def sent(self, rows: int) -> None:
        """Returns once the time that these rows take has passed, behind those before them."""
        if self._rate is None:
            return
        now = self._clock()
        self._due = max(self._due, now) + rows / self._rate
        await self._sleep(self._due - now)
