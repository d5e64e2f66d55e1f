"""Heartbeats: a logical message every few seconds, so that an idle database's slot advances and freshness stays
measured.

`pg_logical_emit_message(true, …)` needs no table; it is a transaction like any other, and travels the whole way.
"""

from __future__ import annotations

import asyncio

import psycopg

from cdc.config import Postgres
from cdc.log import get
from cdc.source.beside import beside, opened
from cdc.source.connection import connect, connect_error
from cdc.source.events import MESSAGE_PREFIX

HEARTBEAT = b'{"kind":"heartbeat"}'
log = get(__name__)


async def beat(config: Postgres) -> None:
    """Emits for ever, once every `heartbeat_seconds`. Raises ConnectError when the source is away."""
    async with opened(connect, config, name="memory-cdc heartbeat") as connection:
        while True:
            await beside(_emit, connection)
            await asyncio.sleep(config.heartbeat_seconds)


def _emit(connection: psycopg.Connection) -> None:
    try:
        connection.execute("SELECT pg_logical_emit_message(true, %s, %s)", (MESSAGE_PREFIX, HEARTBEAT.decode()))
    except psycopg.Error as error:
        raise connect_error(error) from error
