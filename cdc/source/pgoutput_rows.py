"""TupleData of pgoutput: text values, NULLs and unchanged TOAST marks → a row of fragments.

Format: PostgreSQL manual, "Logical Replication Message Formats", TupleData. Raises DecodeError with the byte offset;
struct.error and IndexError, where the message is cut off, are the caller's to turn into one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from cdc.errors import DecodeError, PreconditionError
from cdc.source.events import NULL, UNCHANGED, Fragment, Table
from cdc.source.runs import HOWS, Way

HINT: Final = "is the slot's plugin pgoutput with proto_version 1?"
INT16: Final = struct.Struct("!H").unpack_from
INT32: Final = struct.Struct("!I").unpack_from
_NULL, _TOAST, _TEXT = b"nut"


class Shape(NamedTuple):
    """A Relation message made ready: for each column its place in the table (-1: does not travel) and its codec."""

    table: Table
    columns: tuple[tuple[int, Callable[[bytes], bytes]], ...]

    @property
    def whole(self) -> bool:
        """Whether every column of the table is among them."""
        return {place for place, _ in self.columns} >= set(range(len(self.table.columns)))

    @property
    def ways(self) -> list[Way]:
        """For runs."""
        return [Way(place, HOWS.get(codec, "call"), codec) for place, codec in self.columns]


def read_tuple(data: bytes, at: int, shape: Shape) -> tuple[list[Fragment], int]:
    """TupleData from `at` → (a fragment a column of the table, offset after it)."""
    if INT16(data, at)[0] != len(shape.columns):
        raise DecodeError(f"pgoutput: the row at byte {at} does not have its relation's columns", hint=HINT)
    row: list[Fragment] = [UNCHANGED] * len(shape.table.columns)
    try:
        return row, _values(data, at + 2, shape, row)
    except DecodeError as error:
        table = f"{shape.table.schema}.{shape.table.name}"
        raise DecodeError(f"pgoutput: a row of {table} at byte {at}: {error.message}", hint=error.hint) from error


def _values(data: bytes, at: int, shape: Shape, row: list[Fragment]) -> int:
    for place, codec in shape.columns:
        kind = data[at]
        at += 1
        if kind == _TEXT:
            start = at + 4
            at = start + INT32(data, at)[0]
            if at > len(data):
                raise DecodeError(f"a value at byte {start} is cut off", hint=HINT)
            if place >= 0:
                row[place] = codec(data[start:at])
        elif kind == _NULL:
            if place >= 0:
                row[place] = NULL
        elif kind != _TOAST:
            raise DecodeError(f"unknown kind of value at byte {at - 1}", hint=HINT)
    return at


def forget_unknown(old: list[Fragment], table: Table) -> None:
    """A key tuple has NULL for every column outside the replica identity: they are not known."""
    key = table.key
    if any(old[i] == NULL for i in key):
        raise PreconditionError(
            f"a row of {table.schema}.{table.name} lacks key columns: the replica identity does not cover the key",
            hint=f"ALTER TABLE {table.schema}.{table.name} REPLICA IDENTITY FULL, then run `cdc resync`",
        )
    for i in range(len(old)):
        if i not in key:
            old[i] = UNCHANGED
