"""What follows on which error: one table. Its default is to stop: an unknown error must not be survived."""

from __future__ import annotations

import random
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from cdc.errors import ConnectError, LoginError, RecordError, StoreLost

FIRST_SECONDS = 0.1  # a restart of Redis takes about that long
MOST_SECONDS = 10.0  # a server that comes back is used again within that time


class Action(Enum):
    """`WAIT` tries again for ever, `REFILL` replays, `SET_ASIDE` is a dead letter, `STOP` ends the process."""

    WAIT = "wait"
    REFILL = "refill"
    SET_ASIDE = "set aside"
    STOP = "stop"


class Policy(NamedTuple):
    """An action and the label its metrics carry."""

    action: Action
    reason: str


POLICIES: tuple[tuple[type[Exception], Policy], ...] = (
    (LoginError, Policy(Action.STOP, "login")),  # a ConnectError too, so it stands first
    (ConnectError, Policy(Action.WAIT, "connect")),
    (StoreLost, Policy(Action.REFILL, "lost")),
    (OffsetOutOfRangeError, Policy(Action.REFILL, "offsets")),
    (RecordError, Policy(Action.SET_ASIDE, "record")),
)
KAFKA_AWAY = Policy(Action.WAIT, "kafka")
UNKNOWN = Policy(Action.STOP, "unknown")


def policy_for(error: BaseException) -> Policy:
    """The first row that fits; Kafka's own errors say themselves whether trying again helps."""
    for kind, policy in POLICIES:
        if isinstance(error, kind):
            return policy
    return KAFKA_AWAY if isinstance(error, KafkaError) and error.retriable else UNKNOWN


def delays() -> Iterator[float]:
    """Seconds to wait before each next try, without end: by chance between nothing and a limit that doubles, so that
    consumers that lost the same server do not come back all at once. ("Full jitter": of all ways it costs a server that
    comes back the fewest calls, AWS Architecture Blog, "Exponential Backoff And Jitter".)"""
    longest = FIRST_SECONDS
    while True:
        yield random.uniform(0.0, longest)
        longest = min(longest * 2, MOST_SECONDS)
