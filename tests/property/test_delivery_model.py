"""Order, versions, dedupe, tombstones and progress, whatever is delivered twice, late, out of order or not at all.

The real assembler, chunks, grouping, stores' rules and freshness run against a model of source, log and crashes
(`tests.property.delivery`), compared at every step with a dictionary. `CDC_MODEL_STEPS=1000000` runs a million steps.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cdc.assembler import Assembler
from cdc.envelope import SWEEP_KEY, TRUNCATE_KEY
from cdc.position import ZERO, Position
from cdc.source.window import Windows
from consumers.faiss.content import Content
from consumers.faiss.ledger import Ledger
from consumers.freshness import Heartbeat
from tests.memory_store import MemoryStore
from tests.property.delivery.consuming import Consumer, Server
from tests.property.delivery.world import World

STEPS = int(os.environ.get("CDC_MODEL_STEPS", "100000"))  # the default takes about 10 s
PIECE, PIECES = 800, 8  # bytes: hypothesis takes 8 kB an example; a piece of zeros is nothing, so that it can shrink
TRIES = 4000  # schedules: the rarest of the broken rules shows in one of a hundred
STEPS_AN_EXAMPLE = 900  # at the least, on average

schedules = st.lists(st.binary(min_size=PIECE, max_size=PIECE), min_size=PIECES, max_size=PIECES).map(b"".join)


async def play(schedule: bytes, repeats: bool) -> World:
    """One schedule, in a loop, since snapshots are answered by futures."""
    world = World(repeats=repeats)
    world.run(schedule)
    return world


def test_whatever_happens_the_stores_equal_the_source() -> None:
    steps: Counter[str] = Counter()
    applied = 0

    @settings(
        max_examples=STEPS // STEPS_AN_EXAMPLE + 1,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(schedules, st.sampled_from([False, False, False, True]))
    def example(schedule: bytes, repeats: bool) -> None:
        nonlocal applied
        world = runner.run(play(schedule, repeats))
        steps.update(world.steps)
        applied += sum(consumer.applied for consumer in world.consumers)

    with asyncio.Runner() as runner:
        example()
    print(f"{steps.total():,} steps, {applied:,} records applied: {dict(steps.most_common())}")
    assert steps.total() >= STEPS
    assert min(steps.values()) > 0


def always_newer(self: Ledger, ids: Any, positions: Any) -> Any:
    return np.ones(len(positions), dtype=np.bool_)


def arrival_decides(self: MemoryStore, rows: Any, floor: bytes, record: Any, done: Any) -> None:
    """Without a comparison of positions: what comes last is taken for the newest."""
    applying = MemoryStore.__dict__["_original"]
    rows.pop(record.key, None)
    applying(self, rows, floor, record, done)


def deletes_leave_nothing(self: MemoryStore, rows: Any, floor: bytes, record: Any, done: Any) -> None:
    """A delete without a tombstone."""
    MemoryStore.__dict__["_original"](self, rows, floor, record, done)
    if record.key in rows and rows[record.key][2] is None:
        del rows[record.key]


def nothing_skipped(self: Assembler, begin: Any) -> None:
    Assembler.__dict__["_original"](self, begin)
    self._skip_to = 0


def too_much_skipped(self: Assembler, begin: Any) -> None:
    """The whole of a transaction that was cut."""
    Assembler.__dict__["_original"](self, begin)
    self._skip_to = 0xFFFF_FFFF if self._skip_to else 0


def no_sweep(self: Assembler, envelope: Any, topic: str, key: bytes, below: str, ordinal: int) -> None:
    if key != SWEEP_KEY:
        Assembler.__dict__["_original"](self, envelope, topic, key, below, ordinal)


def truncated_without_progress(self: Assembler, event: Any) -> None:
    """A chunk that ends at a truncate and does not say so: as it was."""
    for table in event.tables:
        envelope, topic, name = self._envelope(table)
        self.windows.truncate(name)
        if ordinal := self._next():
            below = Position(self._origin.epoch, self._begin.commit_lsn, ordinal).encode().decode()
            self._mark(envelope, topic, TRUNCATE_KEY, below, ordinal)


def offsets_first(self: Consumer, places: Any, most: int, *, die_after: int | None = None) -> bool:
    """Offsets become durable before what they claim."""
    if isinstance(self.store, Server):
        for place in places:
            reached = self._topics.logs[place].read(self.at[place], most)[1]
            self.store._memory.live.offsets[place] = reached
    delivered: bool = Consumer.__dict__["_original"](self, places, most, die_after=die_after)
    return delivered


def no_floor(self: Content, below: bytes) -> int:
    """Rows go, but older ones may come again."""
    removed: int = Content.__dict__["_original"](self, below)
    self.ledger.floor = ZERO.encode()
    return removed


MUTANTS = {
    "positions not compared, index": (Ledger, "newer", always_newer),
    "positions not compared, server": (MemoryStore, "_apply", arrival_decides),
    "no tombstone": (MemoryStore, "_apply", deletes_leave_nothing),
    "nothing skipped": (Assembler, "_start", nothing_skipped),
    "too much skipped": (Assembler, "_start", too_much_skipped),
    "no sweep": (Assembler, "_mark", no_sweep),
    "truncate not in progress": (Assembler, "_truncate", truncated_without_progress),
    "offsets before data": (Consumer, "deliver", offsets_first),
    "no floor": (Content, "truncate", no_floor),
    "windows blind": (Windows, "touch", lambda self, name, key: None),
    "races unseen": (Windows, "raced", lambda self, window, running: False),
    "fresh too early": (Heartbeat, "reached", lambda self, applied: True),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_model_notices(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rule broken once; else the model would prove nothing."""
    owner, name, broken = MUTANTS[mutant]
    monkeypatch.setattr(owner, "_original", getattr(owner, name), raising=False)
    monkeypatch.setattr(owner, name, broken)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with asyncio.Runner() as runner, pytest.raises(AssertionError):
        runner.run(search(chance))


async def search(chance: random.Random) -> None:
    """Schedules until one fails."""
    for _ in range(TRIES):
        await play(chance.randbytes(3000), repeats=False)
