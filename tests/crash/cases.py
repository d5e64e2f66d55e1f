"""Where processes are killed: every failpoint in each process that passes it, and anywhere at all."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import NamedTuple

from cdc.failpoint import POINTS

ANYWHERE = "SIGKILL"  # at a random moment
_WRITER = ("writer.before-produce", "writer.after-produce", "writer.before-commit", "writer.after-commit")
_FEEDBACK = ("reader.before-feedback", "reader.after-feedback")
_SNAPSHOT = ("snapshot.chunk-read", "snapshot.chunk-offered", "snapshot.chunk-written")
_RESYNC = ("resync.slot-dropped", "resync.slot-created", "resync.written")
_CONSUMER = ("consumer.polled", "consumer.applied", "consumer.flushed", "consumer.committed")
_INDEX = ("faiss.snapshot-begun", "faiss.snapshot-written", "faiss.snapshot-renamed")
_REBUILD = ("rebuild.replaying", "rebuild.before-swap", "rebuild.after-swap")


class Case(NamedTuple):
    """`victim`: the service or command that dies at `point`, at its `most`-th passing at the latest. `kind` is for
    choosing: reader, redis, faiss, resync, rebuild."""

    kind: str
    victim: str
    point: str
    most: int = 1

    @property
    def label(self) -> str:
        """For the tables."""
        return f"{self.victim}: {self.point}"


CASES = (
    *(Case("reader", "reader", point, 8) for point in (*_WRITER, *_FEEDBACK)),
    *(Case("reader", "reader", point, 6) for point in _SNAPSHOT),
    Case("reader", "reader", "reader.slot-created"),
    Case("reader", "reader", ANYWHERE),
    *(Case("redis", "redis", point, 6) for point in (*_CONSUMER, "redis.between-calls")),
    Case("redis", "redis", ANYWHERE),
    *(Case("faiss", "faiss", point, 6) for point in _CONSUMER),
    *(Case("faiss", "faiss", point, 3) for point in _INDEX),
    Case("faiss", "faiss", ANYWHERE),
    *(Case("resync", "resync", point) for point in _RESYNC),
    *(Case("rebuild", "rebuild redis", point) for point in _REBUILD),
    *(Case("rebuild", "rebuild faiss", point) for point in (*_REBUILD, *_INDEX, "faiss.pointer-written")),
)
KINDS = ("reader", "redis", "faiss", "resync", "rebuild")
TWO_AT_ONCE = 0.15  # of the trials kill a second process as well
ELSEWHERE = {"redis.rekeyed"}  # a table's primary key does not change here: tests/integration/test_redis_layout.py
assert {case.point for case in CASES} == {*POINTS, ANYWHERE} - ELSEWHERE, "a failpoint without a case"


def deal(seed: int, number: int, kinds: Collection[str]) -> list[Case]:
    """The cases of a trial, one or two in different processes. A deck is dealt to its end before it is shuffled again,
    so that every case has its turn; the trial depends on nothing but the arguments."""
    deck = [case for case in CASES if case.kind in kinds]
    random.Random(f"{seed}:deck:{number // len(deck)}").shuffle(deck)
    first = deck[number % len(deck)]
    chance = random.Random(f"{seed}:second:{number}")
    others = [case for case in deck if _beside(case, first)]
    if not others or chance.random() >= TWO_AT_ONCE:
        return [first]
    return [first, chance.choice(others)]


def _beside(case: Case, first: Case) -> bool:
    """Whether `case` can go on beside `first`: services only, not the reader during a resync, no first start."""
    services = ("reader", "redis", "faiss")
    busy = "reader" if first.victim == "resync" else first.victim
    return case.victim in services and case.victim != busy and "reader.slot-created" not in (case.point, first.point)
