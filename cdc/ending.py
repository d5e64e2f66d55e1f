"""The end of tasks that run beside others.

aiokafka takes a cancellation that comes while a client of its own stops for one of its tasks': the caller goes on as if
nobody had asked. A loop for ever would then never end, and neither would the process that waits for it.
"""

from __future__ import annotations

import asyncio
from typing import Any

AGAIN_SECONDS = 6.0  # a task that cleans up is left alone that long: a client says goodbye within 5


def look() -> None:
    """At each turn of a loop around such a client. Raises CancelledError when one was asked for and got lost."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def end(*tasks: asyncio.Future[Any]) -> None:
    """Cancels until all have ended; what they raised is theirs to ask for."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        ended, pending = await asyncio.wait(pending, timeout=AGAIN_SECONDS)
        for task in ended:
            if not task.cancelled():
                task.exception()  # seen
