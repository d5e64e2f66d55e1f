"""Who may administer: whoever holds the one key. Calls are counted by where they come from, refused ones included."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import deque

WINDOW_SECONDS = 60.0
ORIGINS = 10_000  # remembered; beyond that the oldest is forgotten


class AdminKey:
    """`key` None: nobody may."""

    def __init__(self, key: str | None) -> None:
        self._digest = None if key is None else _digest(key)

    @property
    def there(self) -> bool:
        """Whether anybody may."""
        return self._digest is not None

    def opens(self, given: str | None) -> bool:
        """In a time that tells nothing of the key, nor of its length."""
        held = self._digest or bytes(hashlib.sha256().digest_size)
        equal = hmac.compare_digest(held, _digest(given or ""))
        return equal and self._digest is not None and given is not None


class Rate:
    """At most `number` calls a minute from one origin."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._calls: dict[str, deque[float]] = {}

    def wait(self, origin: str) -> float:
        """0 and the call counts, else the seconds until one is allowed."""
        now = time.monotonic()
        calls = self._calls.pop(origin, deque())
        self._calls[origin] = calls  # the latest origin is the last
        if len(self._calls) > ORIGINS:
            del self._calls[next(iter(self._calls))]
        while calls and calls[0] <= now - WINDOW_SECONDS:
            calls.popleft()
        if len(calls) >= self._number:
            return calls[0] + WINDOW_SECONDS - now
        calls.append(now)
        return 0.0


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
