"""Holding the slot while Kafka is away.

A writer in doubt is closed, and its stream has run ahead of what is durable, so that only a new session goes on. But a
slot nobody holds has no walsender that reports, and would go to a standby that is no better off. So the old stream is
kept, unread, and its status goes out as ever, until Kafka takes a writer again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

from cdc.errors import ConnectError, LoginError
from cdc.kafka.writer import Writer
from cdc.log import get
from cdc.metrics import READER_RETRIES
from cdc.waiting import Waiting

log = get(__name__)
BACKOFF = (0.2, 10.0)  # seconds: first and longest wait before a server is tried again


def pause(wait: float) -> float:
    """Between half of it and all of it: readers that lost the same server do not come back in step."""
    return wait * random.uniform(0.5, 1)


async def hold(error: ConnectError, writer: Writer, status: Coroutine[Any, Any, None], source_name: str) -> None:
    """Returns when Kafka takes a writer (at once when it was not Kafka that was lost), or when `status`, which tells
    the slot what is durable, finds the stream lost too. `error` is what was lost. Raises what waiting cannot mend."""
    log.warning("a server is lost", reason=error.message, hint=error.hint)  # the reader counts it once this is over
    tasks = asyncio.ensure_future(status), asyncio.ensure_future(_started(writer, source_name))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ended:
        if isinstance(end, BaseException) and not isinstance(end, ConnectError | asyncio.CancelledError):
            raise end


async def _started(writer: Writer, source_name: str) -> None:
    """Starts it, which proves that Kafka answers and coordinates; again until it does."""
    wait, waiting = BACKOFF[0], Waiting()
    while True:
        await writer.close()
        try:
            return await writer.start()
        except LoginError:
            raise
        except ConnectError as error:
            READER_RETRIES.labels(source_name, type(error).__name__).inc()
            if waiting.news(error.message):
                log.warning("Kafka is away, the slot is held", reason=error.message, hint=error.hint)
        await asyncio.sleep(pause(wait))
        wait = min(wait * 2, BACKOFF[1])
