"""The wire form of one change in a topic, shared by the reader (which writes) and the consumers (which read).

Value: JSON in Debezium's shape (Debezium manual, "PostgreSQL connector: data change events"):
`{"before","after","source","op","ts_ms","transaction"}`; `op` is c/u/d/r(snapshot)/t(truncate, sweep).
`before` holds the key columns only, for deletes: the whole old row would not survive compaction anyway.
Key: JSON of the primary key, columns in key order. A delete is followed by a tombstone (null value).
Headers: `cdc.pos` (position, 32 hex digits) and `cdc.ver` (version vector, JSON), on tombstones too.
Vectors travel as `"f32:<base64 of little-endian float32>"` (`f64:` for float8[]), see docs/types.md.

Markers: a record with key `TRUNCATE_KEY` or `SWEEP_KEY`, op `t`, in every partition of a topic says that every row
of the table with a position below `source.below` is gone. Keys stay apart, because compaction keeps one record a key.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from cdc.errors import MALFORMED, DecodeError

POSITION_HEADER = "cdc.pos"
VERSION_HEADER = "cdc.ver"
TRUNCATE_KEY = b'{"__cdc":"truncate"}'
SWEEP_KEY = b'{"__cdc":"sweep"}'
MARKER_KEYS = frozenset((TRUNCATE_KEY, SWEEP_KEY))

Op = Literal["c", "u", "d", "r", "t"]
Headers = Sequence[tuple[str, bytes]]


class Source(msgspec.Struct, gc=False):
    """Where a change comes from. `below` only in markers; `filled` names columns the reader re-selected."""

    name: str
    db: str
    schema: str
    table: str
    ts_us: int
    epoch: int
    lsn: int
    ordinal: int
    snapshot: str = "false"
    txId: int | None = None
    vector: dict[str, int] = {}
    below: str | None = None
    filled: list[str] = []


ABSENT = msgspec.Raw(b"null")


class ChangeEvent(msgspec.Struct, gc=False):
    """One decoded value. `after` and `before` stay raw JSON (`null` when absent) until a store asks for columns."""

    op: Op
    source: Source
    ts_ms: int
    before: msgspec.Raw = ABSENT
    after: msgspec.Raw = ABSENT


class _AfterOnly(msgspec.Struct, gc=False):
    op: Op
    after: msgspec.Raw = ABSENT


_EVENT = msgspec.json.Decoder(ChangeEvent)
_AFTER = msgspec.json.Decoder(_AfterOnly)
_KEY = msgspec.json.Decoder(dict[str, object])
_base64 = msgspec.json.Decoder(bytes).decode  # as strict as binascii can be, in 1.5 µs of 384 floats instead of 4

_WIDTHS = {"f32:": 4, "f64:": 8}  # bytes of one float, by the tag of the wire form


def decode_event(value: bytes) -> ChangeEvent:
    """The whole event; raises DecodeError."""
    try:
        return _EVENT.decode(value)
    except MALFORMED as error:
        raise DecodeError(f"not a change event: {error}", hint="was this topic written by another program?") from error


def decode_after(value: bytes) -> tuple[Op, bytes | None]:
    """`(op, raw JSON of the row)` without decoding the rest: the stores' hot path. Raises DecodeError."""
    try:
        event = _AFTER.decode(value)
    except MALFORMED as error:
        raise DecodeError(f"not a change event: {error}", hint="was this topic written by another program?") from error
    after = bytes(event.after)
    return event.op, None if after == b"null" else after


def decode_key(key: bytes) -> dict[str, object]:
    """Primary-key column → value, in key order; raises DecodeError."""
    try:
        return _KEY.decode(key)
    except MALFORMED as error:
        raise DecodeError(f"not a record key: {error}", hint="was this topic written by another program?") from error


def header(headers: Headers, name: str) -> bytes:
    """The value of a header; DecodeError when it is absent."""
    for key, value in headers:
        if key == name:
            return value
    raise DecodeError(f"a record lacks the header {name}", hint="was this topic written by another program?")


def encode_floats(values: npt.NDArray[np.floating], *, double: bool = False) -> str:
    """1-d floats → wire form, without quotes."""
    raw = np.ascontiguousarray(values, dtype="<f8" if double else "<f4").tobytes()
    return ("f64:" if double else "f32:") + base64.b64encode(raw).decode()


def decode_floats(text: str | bytes) -> npt.NDArray[np.float32]:
    """Wire form (without quotes) → float32 array, shape (d,), not writable. Raises DecodeError."""
    return np.frombuffer(float_bytes(text), dtype="<f4")


def float_bytes(text: str | bytes) -> bytes:
    """Wire form (without quotes) → little-endian float32, d times 4 bytes. Raises DecodeError."""
    try:
        if isinstance(text, bytes):
            text = text.decode()
        width = _WIDTHS.get(text[:4])
        if width is None:
            raise DecodeError("a vector is not in its wire form", hint="expected f32:<base64> or f64:<base64>")
        if "\\" in text:
            raise ValueError("a backslash is not of base64")
        raw = _base64(f'"{text[4:]}"')
        if len(raw) % width:
            raise ValueError("a float is cut off")
    except (*MALFORMED, ValueError) as error:
        raise DecodeError(f"a vector does not decode: {error}", hint="expected base64 of whole floats") from error
    return raw if width == _WIDTHS["f32:"] else np.frombuffer(raw, "<f8").astype("<f4").tobytes()
