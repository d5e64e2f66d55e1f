"""Heartbeats: a logical message every few seconds, so that an idle database's slot advances and freshness stays
measured.

`pg_logical_emit_message(true, …)` needs no table; it is a transaction like any other, and travels the whole way.
Each one also tells how far the source's clock is from ours: ages of what committed are measured with two clocks.
"""

from __future__ import annotations

import asyncio
import time

import psycopg

from cdc.config import Config
from cdc.log import get
from cdc.metrics import SOURCE_CLOCK_OFFSET
from cdc.source.beside import beside, opened
from cdc.source.connection import connect, connect_error
from cdc.source.events import MESSAGE_PREFIX

HEARTBEAT = b'{"kind":"heartbeat"}'
_EMIT = "SELECT extract(epoch FROM clock_timestamp())::float8 FROM pg_logical_emit_message(true, %s, %s)"
log = get(__name__)


async def beat(config: Config) -> None:
    """Emits for ever, once every `heartbeat_seconds`. Raises ConnectError when the source is away."""
    offset = SOURCE_CLOCK_OFFSET.labels(config.source_name)
    async with opened(connect, config.postgres, name="memory-cdc heartbeat") as connection:
        while True:
            offset.set(await beside(_emit, connection))
            await asyncio.sleep(config.postgres.heartbeat_seconds)


def _emit(connection: psycopg.Connection) -> float:
    """Seconds by which the source's clock is ahead of ours: its answer's time less the middle of the round trip."""
    before = time.time()
    try:
        row = connection.execute(_EMIT, (MESSAGE_PREFIX, HEARTBEAT.decode())).fetchone()
    except psycopg.Error as error:
        raise connect_error(error) from error
    assert row is not None
    return float(row[0]) - (before + time.time()) / 2
