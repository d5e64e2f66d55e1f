"""The waits between two tries to reach a broker."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
import uvloop
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest

from cdc.reconnect import FIRST_SECONDS, MOST_SECONDS, Backoff, slow_down

BROKER, OTHER = ("broker-1", 9092), ("broker-2", 9092)


class Clock:
    """Seconds, moved by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_broker_away_is_tried_less_and_less_often() -> None:
    clock = Clock()
    backoff = Backoff(clock)
    tries = []
    while clock.now < 160.0:
        if backoff.claim(BROKER):
            assert not tries or not backoff.claim(BROKER)  # a second one, who asks in the same moment, waits
            tries.append(clock.now)
            backoff.failed(BROKER)
        clock.now += 0.01
    waits = [later - earlier for earlier, later in pairwise(tries)]
    assert waits[0] <= FIRST_SECONDS + 0.02
    assert all(wait >= MOST_SECONDS / 2 for wait in waits[8:])
    assert max(waits) <= MOST_SECONDS + 0.02
    assert len(set(waits[8:])) > 5  # not in step with others
    assert 60 <= len(tries) <= 130


def test_one_that_is_back_is_used_at_once_and_others_never_wait() -> None:
    clock = Clock()
    backoff = Backoff(clock)
    for _ in range(10):
        backoff.failed(BROKER)
    assert not backoff.claim(BROKER)
    assert backoff.claim(OTHER)
    clock.now += MOST_SECONDS
    assert backoff.claim(BROKER)  # and counts as failed until it is reached
    assert not backoff.claim(BROKER)
    backoff.reached(BROKER)
    assert backoff.claim(BROKER)
    assert backoff.claim(BROKER)


def test_a_transport_that_broke_is_a_broken_connection() -> None:
    """uvloop raises RuntimeError there, which would end the process."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def send() -> None:
        slow_down()
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            connection = AIOKafkaConnection(host, port)
            connection._reader, connection._writer = await asyncio.open_connection(host, port)
            connection._read_task = asyncio.ensure_future(asyncio.sleep(0))
            connection._writer.transport.abort()
            with pytest.raises(KafkaConnectionError):
                connection.send(MetadataRequest([]))
            await asyncio.sleep(0.1)  # both ends see it

    uvloop.run(send())
