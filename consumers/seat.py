"""A consumer's seat on its machine, so that one which was killed is followed at once instead of when its session ends.

A group keeps a dead member's partitions for the session time-out (10 s), since it cannot tell a dead one from a slow
one. The machine can: each process of a group holds a numbered seat by an abstract socket (unix(7)), which the kernel
frees with the process, however it ends. The seat names its client in Kafka. So whoever takes a free seat knows that a
member of that name is dead, and takes it out of the group. A member that is only stopped still holds its seat.

Seats are named by the host. Should two machines have one name, a start takes the other's living member out, which
joins again by itself: work done twice, nothing worse. That is why this is not Kafka's static membership, in which two
of one name would end each other for ever, and which aiokafka does not let leave.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import socket
import sys

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.protocol.group import LeaveGroupRequest

from cdc import log
from cdc.config import Config

LOG = log.get(__name__)


class Seat:
    """The lowest free seat of a group on this host; held until `leave` or the process ends."""

    def __init__(self, group: str) -> None:
        self.group = group
        self._socket: socket.socket | None = None
        key = hashlib.sha256(group.encode()).hexdigest()[:32]  # a socket's name takes 107 bytes
        for number in itertools.count():
            if not sys.platform.startswith("linux") or self._taken(f"\0memory-cdc/{key}/{number}"):
                self.name = f"memory-cdc-{socket.gethostname()}-{number}"
                return

    def _taken(self, address: str) -> bool:
        held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            held.bind(address)
        except OSError as error:
            held.close()
            if error.errno != errno.EADDRINUSE:
                raise
            return False
        self._socket = held
        return True

    async def clear(self, config: Config) -> None:
        """Takes whoever sat here before out of the group. What Kafka refuses costs time only: the session then ends by
        itself."""
        if self._socket is None:
            return
        admin = AIOKafkaAdminClient(**config.kafka.client_options())
        try:
            await admin.start()
            coordinator = await admin.find_coordinator(self.group)
            (answer,) = await admin.describe_consumer_groups([self.group], coordinator)
            for member, client, *_rest in answer.groups[0][5]:
                if client == self.name:
                    await admin._client.send(coordinator, LeaveGroupRequest(self.group, member))
                    LOG.info("a dead member's partitions are taken over", group=self.group, member=member)
        except KafkaError as error:
            LOG.info("a dead member, if there is one, is waited for", group=self.group, reason=repr(error))
        finally:
            await admin.close()

    def leave(self) -> None:
        """Frees the seat."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
