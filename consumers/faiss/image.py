"""The ledger as a file: one MessagePack map of columns, packed a piece at a time and read as a whole.

Packing goes through two Python objects a row, and in one go would hold every other thread for tens of milliseconds.
So the thread that changes the ledger packs some thousand rows, lets searches run, and goes on; nothing changes
meanwhile. What comes out is bytes, not objects that would have to be let go of one by one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from cdc.position import WIDTH
from consumers.faiss.arrays import Ids, Objects
from consumers.faiss.ledger import Ledger, State

HEX_DIGITS = b"0123456789abcdef"
PIECE_ROWS = 4096  # half a millisecond
_LONG = struct.Struct(">BI")  # a type and a length: https://github.com/msgpack/msgpack/blob/master/spec.md
_ARRAY, _BYTES, _SMALL_MAP = 0xDD, 0xC6, 0x80

Pieces = Iterator[bytes]


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


def pack(ledger: Ledger, between: Callable[[], object] = lambda: None) -> list[bytes]:
    """An Image in MessagePack, in pieces; `between` is called after each. The ledger must not change meanwhile."""
    parts = []
    for piece in _image(ledger):
        parts.append(piece)
        between()
    return parts


def _image(ledger: Ledger) -> Pieces:
    ids: Ids = np.flatnonzero(ledger.states[: ledger.room] != State.UNKNOWN)
    columns: dict[str, Pieces] = {
        "floor": _plain(np.frombuffer(ledger.floor, np.uint8), slice(None)),
        "keys": _objects(ledger.keys, ids),
        "vectors": _objects(ledger.vectors, ids),
        "ids": _plain(ids, slice(None)),
        "free": _plain(np.array(ledger.free, dtype=np.int64), slice(None)),
        "positions": _plain(ledger.positions, ids),
        "digests": _plain(ledger.digests, ids),
        "states": _plain(ledger.states, ids),
        "stamps": _plain(ledger.stamps, ids),
    }
    yield bytes([_SMALL_MAP + len(columns)])
    for name, pieces in columns.items():
        yield msgspec.msgpack.encode(name)
        yield from pieces


def _objects(column: Objects, ids: Ids) -> Pieces:
    yield _LONG.pack(_ARRAY, len(ids))
    for start in range(0, len(ids), PIECE_ROWS):
        yield b"".join(map(msgspec.msgpack.encode, column[ids[start : start + PIECE_ROWS]].tolist()))


def _plain(column: npt.NDArray[Any], rows: Ids | slice) -> Pieces:
    chosen = column[rows].astype(column.dtype.newbyteorder("<"), copy=False)
    yield _LONG.pack(_BYTES, chosen.nbytes)
    yield chosen.tobytes()


def unpack(data: bytes) -> Ledger:
    """The ledger that was packed. Raises ValueError or msgspec.DecodeError when it is none, or its columns do not fit.

    As `ids` and `free` are all numbers there are, no number in an image can ask for more memory than its own size."""
    image = msgspec.msgpack.decode(data, type=Image)
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
    ledger = Ledger(image.keys, ids, free)
    ledger.floor = image.floor
    ledger.vectors[ids] = image.vectors
    ledger.positions[ids], ledger.states[ids] = positions, states
    ledger.digests[ids], ledger.stamps[ids] = digests, stamps
    return ledger


def in_wire_form(positions: bytes) -> bool:
    """Whether these are positions, any number of them side by side."""
    return len(positions) % WIDTH == 0 and not positions.translate(None, HEX_DIGITS)


def _column(raw: bytes, kind: str) -> npt.NDArray[Any]:
    """Raises ValueError when a part of an item is left."""
    return np.frombuffer(raw, np.dtype(kind))
