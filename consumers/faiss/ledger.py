"""What the index knows of each key: its id, its newest position, its version vector, and what became of it.

A key gets an int64 id at first sight and keeps it, across snapshots, until it is forgotten; only then may another key
get it. Columns are numpy arrays, and the id is the row, so that a whole batch is looked up, compared and written at
once.

Tombstones. A deleted key stays known, so that a redelivered older record cannot bring it back. A replay never needs
one: it starts at the offsets of a snapshot and meets the delete again. So a tombstone only bridges redelivery within
a run (a rewound partition, a reader that wrote twice) and may be forgotten once a durable snapshot has it and it has
reached an age, or a number, that the config names.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import IntEnum
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from cdc.position import WIDTH, ZERO
from consumers.faiss.arrays import Bytes, Digests, Ids, Mask, Objects, Positions, Times
from consumers.store import Version

FIRST_ROWS = 1024  # below that, growing costs more than memory
GROWTH = 1.5
NONE: Ids = np.empty(0, dtype=np.int64)


class State(IntEnum):
    """What became of a key. `BARE`: known, but without a vector; `REJECTED`: a dead letter stands for it."""

    UNKNOWN = 0
    LIVE = 1
    BARE = 2
    REJECTED = 3
    DELETED = 4


class Ledger:
    """Not thread-safe: one thread changes it, readers hold the gate. `floor`: everything older is gone (truncated).

    It begins with keys whose ids are known, and ids that are free: all numbers from 0 on, once."""

    def __init__(self, keys: Sequence[bytes] = (), ids: Ids = NONE, free: Ids = NONE) -> None:
        self.floor = ZERO.encode()
        self._ids: dict[bytes, int] = dict(zip(keys, ids.tolist(), strict=True))
        self._next = len(ids) + len(free)
        self._free: list[int] = free.tolist()
        self._allocate(max(FIRST_ROWS, self._next))
        self.keys[ids] = keys

    def _allocate(self, rows: int) -> None:
        self.keys: Objects = np.empty(rows, dtype=object)
        self.vectors: Objects = np.empty(rows, dtype=object)
        self.positions: Positions = np.zeros(rows, dtype=f"S{WIDTH}")
        self.digests: Digests = np.zeros(rows, dtype=np.uint64)
        self.states: Bytes = np.zeros(rows, dtype=np.uint8)
        self.stamps: Times = np.zeros(rows, dtype=np.float64)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def room(self) -> int:
        """Rows that are or were used: ids are below."""
        return self._next

    @property
    def free(self) -> Sequence[int]:
        """Ids of forgotten keys."""
        return self._free

    def look_up(self, keys: Sequence[bytes]) -> Ids:
        """The id of each key, -1 where it is unknown."""
        return np.fromiter(map(self._ids.get, keys, repeat(-1)), dtype=np.int64, count=len(keys))

    def named(self) -> list[tuple[bytes, int]]:
        """Each key with its id."""
        return list(self._ids.items())

    def newer(self, ids: Ids, positions: Positions) -> Mask:
        """Whether each position is newer than what is held under the id (-1: nothing), and not below the floor.

        A rejected record is not held: it may come again, which is what a redrive does."""
        mask: Mask = positions >= np.bytes_(self.floor)
        known = np.flatnonzero(ids >= 0)
        held, refused = self.positions[ids[known]], self.states[ids[known]] == State.REJECTED
        mask[known] &= (positions[known] > held) | ((positions[known] == held) & refused)
        return mask

    def enter(self, keys: Sequence[bytes], ids: Ids) -> Ids:
        """Ids for all, new ones where -1 stands. Equal keys must not come twice."""
        new = np.flatnonzero(ids < 0)
        if not len(new):
            return ids
        rows = self._take(len(new))
        ids = ids.copy()
        ids[new] = rows
        fresh = [keys[i] for i in new.tolist()]
        self._ids.update(zip(fresh, rows, strict=True))
        self.keys[rows] = fresh
        return ids

    def _take(self, number: int) -> list[int]:
        """Rows of forgotten keys first, then new ones."""
        reused = [self._free.pop() for _ in range(min(number, len(self._free)))]
        first = self._next
        self._next += number - len(reused)
        if self._next > len(self.keys):
            self._grow(max(self._next, int(len(self.keys) * GROWTH)))
        return [*reused, *range(first, self._next)]

    def _grow(self, rows: int) -> None:
        for name in ("keys", "vectors", "positions", "digests", "states", "stamps"):
            old: npt.NDArray[Any] = getattr(self, name)
            new = np.zeros(rows, dtype=old.dtype) if old.dtype != object else np.empty(rows, dtype=object)
            new[: len(old)] = old
            setattr(self, name, new)

    def note(self, ids: Ids, positions: Positions, vectors: Sequence[bytes], states: Bytes, digests: Digests) -> None:
        """The newest version of each id."""
        self.positions[ids] = positions
        self.vectors[ids] = vectors
        self.states[ids] = states
        self.digests[ids] = digests
        self.stamps[ids] = time.time()

    def older(self, below: bytes) -> Ids:
        """Ids of all rows, tombstones too, with a position before `below`."""
        rows = slice(0, self._next)
        found: Ids = np.flatnonzero((self.positions[rows] < np.bytes_(below)) & (self.states[rows] != State.UNKNOWN))
        return found

    def forget(self, ids: Ids) -> None:
        """Nothing is known of these any more."""
        for key in self.keys[ids].tolist():
            del self._ids[key]
        self.states[ids] = State.UNKNOWN
        self.keys[ids] = None
        self.vectors[ids] = None
        self._free += ids.tolist()

    def expired(self, before: float, limit: int, covered: float) -> Ids:
        """Tombstones older than `before` (Unix seconds) and the oldest beyond `limit`, none younger than `covered`."""
        dead = np.flatnonzero(self.states[: self._next] == State.DELETED)
        dead = dead[np.argsort(self.stamps[dead], kind="stable")]
        old, safe = np.searchsorted(self.stamps[dead], (before, covered)).tolist()
        return dead[: min(max(old, len(dead) - limit, 0), safe)]

    def counts(self) -> dict[State, int]:
        """Rows by state."""
        found = np.bincount(self.states[: self._next], minlength=len(State))
        return {state: int(found[state]) for state in State}

    def version(self, row: int) -> Version | None:
        """The version held under an id; None when nothing is (a rejected record is not held)."""
        state = self.states[row] if row >= 0 else State.UNKNOWN
        if state in (State.UNKNOWN, State.REJECTED):
            return None
        return Version(bytes(self.positions[row]), self.vectors[row], bool(state == State.DELETED))

    def live(self) -> Ids:
        """Ids with a vector, in order."""
        found: Ids = np.flatnonzero(self.states[: self._next] == State.LIVE)
        return found

    def held(self) -> list[tuple[bytes, bytes]]:
        """`(key, position)` of what is live, with a vector or known to have none."""
        states = self.states[: self._next]
        rows = np.flatnonzero((states == State.LIVE) | (states == State.BARE))
        return list(zip(self.keys[rows].tolist(), self.positions[rows].tolist(), strict=True))
