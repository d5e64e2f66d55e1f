"""Cancelling until it holds.

Before Python 3.12 `asyncio.wait_for` forgets a cancellation that comes in the moment of its result (bpo-37658), and
psycopg waits for every answer by it: cancelled once, a task may just go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

AGAIN_SECONDS = 1.0  # a task that was cancelled and is still there is cancelled again

T = TypeVar("T")


async def cancel(*tasks: asyncio.Future[Any]) -> list[Any]:
    """Returns once all have ended: their results or errors, in order."""
    waiting = set(tasks)
    while waiting:
        for task in waiting:
            task.cancel()
        _done, waiting = await asyncio.wait(waiting, timeout=AGAIN_SECONDS)
    return await asyncio.gather(*tasks, return_exceptions=True)


async def cancellable(work: Coroutine[Any, Any, T]) -> T:
    """`work`, which ends when the caller is cancelled, whatever it waits by."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task})
    finally:
        await cancel(task)
    return task.result()
