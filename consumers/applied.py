"""Waiting until a store in another process has applied everything up to a position."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from cdc.config import Config
from cdc.ending import end
from consumers.freshness import Freshness
from consumers.store import Offsets
from consumers.topics import TableTopics, table_partitions
from consumers.verify import CaughtUp

POLL_SECONDS = 0.1  # between two looks at the store's offsets


def applied_in(
    config: Config, store: str, tables: Sequence[str], offsets: Callable[[], Awaitable[Offsets]], seconds: float
) -> CaughtUp:
    """A `caught_up` for a store in another process: a heartbeat has to come that is past the position, and the
    store's `offsets` have to reach what it says. Raises TimeoutError after `seconds`."""

    async def caught_up(position: bytes) -> None:
        freshness = Freshness(config, store)
        listening = asyncio.ensure_future(freshness.listen())
        try:
            await asyncio.wait_for(_reached(config, tables, position, offsets, freshness, listening), seconds)
        finally:
            await end(listening)

    return caught_up


async def _reached(
    config: Config,
    tables: Sequence[str],
    position: bytes,
    offsets: Callable[[], Awaitable[Offsets]],
    freshness: Freshness,
    listening: asyncio.Future[None],
) -> None:
    topics = TableTopics(config.kafka.prefix, tables)
    partitions = await table_partitions(config, topics)
    while True:
        held = await offsets()
        applied: Mapping[tuple[str, int], int] = {partition: held.get(partition, 0) for partition in partitions}
        known = {topic for topic, _partition in partitions}
        if not freshness.reached(applied, topics.__contains__, known) or not partitions:
            partitions = await table_partitions(config, topics)
        elif freshness.position >= position:
            return
        if listening.done():
            await listening
        await asyncio.sleep(POLL_SECONDS)
