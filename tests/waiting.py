"""Waiting for a condition instead of sleeping; a limit only so that a broken test ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

LIMIT_SECONDS = 40.0  # far beyond anything the code does on a slow machine


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str, seconds: float = LIMIT_SECONDS) -> None:
    """Returns when the condition holds; fails with `what` otherwise."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        result = condition()
        if result if isinstance(result, bool) else await result:
            return
        assert asyncio.get_running_loop().time() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.02)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = LIMIT_SECONDS) -> None:
    """The same for a test without an event loop."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
