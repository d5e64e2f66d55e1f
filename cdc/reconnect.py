"""Kafka clients that come back slowly: while a broker is away, the clients of a process together try it about once a
second, not each of them twenty times.

aiokafka has no reconnect back-off: every loop of every client (metadata, coordinator, fetcher, sender) connects anew
after retry_backoff_ms, for as long as the broker is away. Here a broker that could not be reached is left alone for a
while that doubles up to a second, partly by chance: Kafka's own clients do so by reconnect.backoff.ms and
reconnect.backoff.max.ms, and these are their defaults. To whoever asks meanwhile it is not ready, which all of
aiokafka's loops know how to wait out. A client's first connection, its bootstrap, is not held back: those who start
clients have waits of their own. A broken connection is one error, KafkaConnectionError, under uvloop too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import AIOKafkaConnection, CloseReason

FIRST_SECONDS = 0.05
MOST_SECONDS = 1.0

Address = tuple[str, int]


class Backoff:
    """How long each address is left alone. `clock` in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._away: dict[Address, tuple[float, float]] = {}  # the next wait, and until when the present one lasts

    def claim(self, address: Address) -> bool:
        """True for the one who may try now; the others wait for its outcome, or for the next turn."""
        if address not in self._away:
            return True
        if self._clock() < self._away[address][1]:
            return False
        self.failed(address)
        return True

    def failed(self, address: Address) -> None:
        """It is away: left alone for longer than last time. Those who find that out at the same time count once."""
        if self._clock() < self._away.get(address, (0.0, 0.0))[1]:
            return
        longest = min(self._away.get(address, (FIRST_SECONDS, 0.0))[0], MOST_SECONDS)
        self._away[address] = (longest * 2, self._clock() + longest * random.uniform(0.5, 1.0))

    def reached(self, address: Address) -> None:
        """It is back."""
        self._away.pop(address, None)


_backoff = Backoff()
_connect: Callable[..., Awaitable[Any]] = AIOKafkaClient._get_conn


async def _get_conn(client: Any, node_id: Any, *, group: Any = ConnectionGroup.DEFAULT, no_hint: bool = False) -> Any:
    """aiokafka's own, less often."""
    present = client._conns.get((node_id, group))
    broker = client.cluster.broker_metadata(node_id)
    if broker is None or (present is not None and present.connected()):
        return await _connect(client, node_id, group=group, no_hint=no_hint)
    address = (broker.host, broker.port)
    if not _backoff.claim(address):
        return None
    made = await _connect(client, node_id, group=group, no_hint=no_hint)
    if made is None:
        _backoff.failed(address)
    else:
        _backoff.reached(address)
    return made


_send: Callable[..., Any] = AIOKafkaConnection.send


def _send_if_open(connection: Any, request: Any, expect_response: bool = True) -> Any:
    """aiokafka's own, which takes OSError for a broken connection. Writing to a transport that broke a moment ago is
    passed over by asyncio, but a RuntimeError of uvloop, which no loop of aiokafka's expects."""
    if connection._writer is not None and connection._writer.transport.is_closing():
        connection.close(reason=CloseReason.CONNECTION_BROKEN)
    return _send(connection, request, expect_response)


def slow_down() -> None:
    """For all clients of this process, from now on."""
    AIOKafkaClient._get_conn = _get_conn
    AIOKafkaConnection.send = _send_if_open
