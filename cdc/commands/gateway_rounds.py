"""What the gateway does again and again beside answering: a round that fails is told once, and the next is tried."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from cdc import log, metrics
from cdc.ending import look
from cdc.errors import CdcError

LOG = log.get(__name__)


async def rounds(what: str, work: Callable[[], Awaitable[object]], seconds: float) -> None:
    """For ever, `seconds` apart. Raises what is no CdcError."""
    told = ""
    last = metrics.GATEWAY_ROUND.labels(what)
    last.set_to_current_time()  # one that never succeeds is as old as the process
    while True:
        try:
            await work()
            told = ""
            last.set_to_current_time()
        except CdcError as error:
            if str(error) != told:
                LOG.warning(f"{what}: it does not work", reason=error.message, hint=error.hint)
            told = str(error)
        look()
        await asyncio.sleep(seconds)
