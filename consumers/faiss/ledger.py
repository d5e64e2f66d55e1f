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

import msgspec
import numpy as np
import numpy.typing as npt

from cdc.position import WIDTH, ZERO
from consumers.faiss.arrays import Bytes, Digests, Ids, Mask, Objects, Positions, Times
from consumers.store import Version

FIRST_ROWS = 1024  # below that, growing costs more than memory
GROWTH = 1.5
HEX_DIGITS = b"0123456789abcdef"


class State(IntEnum):
    """What became of a key. `BARE`: known, but without a vector; `REJECTED`: a dead letter stands for it."""

    UNKNOWN = 0
    LIVE = 1
    BARE = 2
    REJECTED = 3
    DELETED = 4


class Image(msgspec.Struct):
    """All rows at one moment, as bytes of little-endian columns: what a snapshot keeps."""

    floor: bytes
    keys: list[bytes]
    vectors: list[bytes]
    ids: bytes  # int64
    free: bytes  # int64: ids of forgotten keys; with `ids` each number from 0 on, once
    positions: bytes  # 32 hex digits each
    digests: bytes  # uint64
    states: bytes  # uint8
    stamps: bytes  # float64, Unix seconds


class Ledger:
    """Not thread-safe: one thread changes it, readers hold the gate. `floor`: everything older is gone (truncated)."""

    def __init__(self) -> None:
        self.floor = ZERO.encode()
        self._ids: dict[bytes, int] = {}
        self._next = 0
        self._free: list[int] = []
        self._allocate(FIRST_ROWS)

    def _allocate(self, rows: int) -> None:
        self.keys: Objects = np.empty(rows, dtype=object)
        self.vectors: Objects = np.empty(rows, dtype=object)
        self.positions: Positions = np.zeros(rows, dtype=f"S{WIDTH}")
        self.digests: Digests = np.zeros(rows, dtype=np.uint64)
        self.states: Bytes = np.zeros(rows, dtype=np.uint8)
        self.stamps: Times = np.zeros(rows, dtype=np.float64)

    def __len__(self) -> int:
        return len(self._ids)

    def look_up(self, keys: Sequence[bytes]) -> Ids:
        """The id of each key, -1 where it is unknown."""
        return np.fromiter(map(self._ids.get, keys, repeat(-1)), dtype=np.int64, count=len(keys))

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

    def image(self) -> Image:
        """A copy for a snapshot."""
        ids = np.flatnonzero(self.states[: self._next] != State.UNKNOWN).astype("<i8")
        return Image(
            self.floor,
            self.keys[ids].tolist(),
            self.vectors[ids].tolist(),
            ids.tobytes(),
            np.array(self._free, dtype="<i8").tobytes(),
            self.positions[ids].tobytes(),
            self.digests[ids].astype("<u8").tobytes(),
            self.states[ids].tobytes(),
            self.stamps[ids].astype("<f8").tobytes(),
        )


def from_image(image: Image) -> Ledger:
    """The ledger an image was taken of. Raises ValueError when its columns do not fit together.

    As `ids` and `free` are all numbers there are, no number in an image can ask for more memory than its own size."""
    ids, free = _column(image.ids, "<i8").astype(np.int64), _column(image.free, "<i8").astype(np.int64)
    rows, room = len(ids), len(ids) + len(free)
    positions, states = _column(image.positions, f"S{WIDTH}"), _column(image.states, "u1")
    digests, stamps = _column(image.digests, "<u8"), _column(image.stamps, "<f8")
    if {len(image.keys), len(image.vectors), len(positions), len(states), len(digests), len(stamps)} != {rows}:
        raise ValueError("columns differ in length")
    if len(set(image.keys)) != rows or not np.array_equal(np.sort(np.concatenate((ids, free))), np.arange(room)):
        raise ValueError("keys and ids do not fit together")
    if rows and not (states.min() > State.UNKNOWN and states.max() <= max(State)):
        raise ValueError("a state is unknown")
    if len(image.floor) != WIDTH or not in_wire_form(image.floor + image.positions):
        raise ValueError("a position is not in its wire form")
    ledger = Ledger()
    ledger.floor = image.floor
    ledger._next = room
    ledger._free = free.tolist()
    ledger._allocate(max(FIRST_ROWS, room))
    ledger._ids = dict(zip(image.keys, ids.tolist(), strict=True))
    ledger.keys[ids], ledger.vectors[ids] = image.keys, image.vectors
    ledger.positions[ids], ledger.states[ids] = positions, states
    ledger.digests[ids], ledger.stamps[ids] = digests, stamps
    return ledger


def in_wire_form(positions: bytes) -> bool:
    """Whether these are positions, any number of them side by side."""
    return len(positions) % WIDTH == 0 and not positions.translate(None, HEX_DIGITS)


def _column(raw: bytes, kind: str) -> npt.NDArray[Any]:
    """Raises ValueError when a part of an item is left."""
    return np.frombuffer(raw, np.dtype(kind))
