"""A connection to Redis that broke is an outage, whatever the event loop calls it."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from cdc.config import Redis
from cdc.errors import ConnectError
from consumers.redis.link import Link


def test_a_transport_that_broke_is_an_outage() -> None:
    """uvloop raises RuntimeError where the next command is written to it; that would end the consumer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while commands := (await reader.read(1000)).count(b"*"):
            writer.write(b"+OK\r\n" * commands)
        writer.close()

    async def talk() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            link = Link(Redis(url=f"redis://{host}:{port}/0"))
            await link.command("PING")
            connection = await link._redis.connection_pool.get_connection()
            connection._writer.transport.abort()
            await asyncio.sleep(0.05)
            with pytest.raises(ConnectError, match="the connection broke"):
                async with link._guarded():
                    await connection.send_command("PING", check_health=False)
            await link.close()
            await asyncio.sleep(0.1)  # both ends see it

    uvloop.run(talk())
