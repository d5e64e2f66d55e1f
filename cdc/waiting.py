"""Saying what a process waits for: one line at once, again when the reason is another one, else once a minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from cdc.errors import CdcError

REPEAT_SECONDS = 60.0  # whoever looks at a log's end finds it there; a night's outage makes some hundred lines


class Waiting:
    """Of one thing that is tried again and again until it works. `clock` in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: str | None = None
        self._since = self._again = 0.0

    def news(self, reason: str) -> bool:
        """It failed: whether that is to be said now."""
        now = self._clock()
        if self._said is None:
            self._since = now
        if reason == self._said and now < self._again:
            return False
        self._said, self._again = reason, now + REPEAT_SECONDS
        return True

    @property
    def seconds(self) -> float:
        """Since it failed first; 0 while it works."""
        return 0.0 if self._said is None else round(self._clock() - self._since, 1)

    def over(self) -> None:
        """It works: what fails next is said at once."""
        self._said = None


def reason_and_hint(error: Exception) -> dict[str, Any]:
    """The log's fields `reason`, and `hint` where the error has one; of others' errors their kind."""
    if isinstance(error, CdcError):
        return {"reason": error.message, "hint": error.hint} if error.hint else {"reason": error.message}
    return {"reason": repr(error)}
