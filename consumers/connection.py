"""Ending Kafka clients, in whatever state Kafka is.

aiokafka 0.14 awaits tasks that it cancelled, and lets their cancellation out of `stop` when one had not begun or was
waiting to try again; and a producer's `stop` sends what is left, for ever when no broker answers. Neither may
hold back or break the end of a process.
"""

from __future__ import annotations

import asyncio
from typing import Any

from cdc import log

LOG = log.get(__name__)

STOP_SECONDS = 3.0  # leaving a group takes one request; more is waiting for a broker that is away


async def disconnect(client: Any) -> None:
    """Stops a consumer or producer; its sockets are closed even when it cannot say goodbye."""
    stopping = asyncio.ensure_future(client.stop())
    await asyncio.wait({stopping}, timeout=STOP_SECONDS)
    if not stopping.done():
        stopping.cancel()
        await asyncio.wait({stopping})
    if stopping.cancelled() or stopping.exception() is not None:
        LOG.info("a Kafka client was ended without a goodbye", client=type(client).__name__)
        network = getattr(client, "client", None) or client._client  # the last step of its stop
        await network.close()
