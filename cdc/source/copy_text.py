"""COPY's text format (manual, COPY, "Text Format"): a line a row, cells in the types' own output form."""

from __future__ import annotations

import re

from cdc.errors import DecodeError

NO_LINE = "a line of COPY does not have the table's columns"
NULL_CELL = rb"\N"
_ESCAPE = re.compile(rb"\\(.)", re.DOTALL)
_MEANT = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}  # any other stands for itself


def cells(line: bytes) -> list[bytes | None]:
    """A line, its end included, as the texts of its columns. Raises DecodeError."""
    if line[-1:] != b"\n":
        raise DecodeError(NO_LINE)
    return [None if cell == NULL_CELL else unescaped(cell) for cell in line[:-1].split(b"\t")]


def unescaped(cell: bytes) -> bytes:
    """The text behind a cell that is no NULL."""
    return _ESCAPE.sub(lambda found: _MEANT.get(found[1], found[1]), cell) if b"\\" in cell else cell
