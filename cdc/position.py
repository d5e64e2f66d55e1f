"""Position: the total order of one source's changes.

LSNs of single changes are neither unique nor delivered in order; `(commit_lsn, ordinal)` is the order of
delivery, and the epoch outranks it when the source's history breaks (resync, new timeline).
The wire form is 32 lower-case hex digits, fixed width, so that comparing text compares positions: Lua, SQL
and `sort` agree with Python.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from cdc.errors import DecodeError

WIDTH = 32  # 8 hex digits of epoch, 16 of commit LSN, 8 of ordinal
HEX = b"0123456789abcdef"
LSN_PATTERN = r"^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$"
_LSN = re.compile(LSN_PATTERN)
MAX_ORDINAL = 0xFFFF_FFFF  # 4.3 billion changes in one transaction


class Position(NamedTuple):
    """`(epoch, commit_lsn, ordinal)`; tuples compare as the changes happened."""

    epoch: int
    commit_lsn: int
    ordinal: int

    def after(self) -> Position:
        """The next one: `below` it is everything up to this one."""
        return Position(self.epoch, self.commit_lsn, self.ordinal + 1)

    def encode(self) -> bytes:
        """32 hex digits; order of the text is order of the positions."""
        return b"%08x%016x%08x" % self

    def __str__(self) -> str:
        return f"{self.epoch}:{format_lsn(self.commit_lsn)}:{self.ordinal}"


ZERO = Position(0, 0, 0)


def decode_position(text: bytes | str) -> Position:
    """The inverse of `Position.encode`; raises DecodeError on anything else."""
    try:
        raw = text.encode() if isinstance(text, str) else text
        if len(raw) != WIDTH or raw.translate(None, HEX):  # int() alone would take signs, spaces and underscores
            raise ValueError(len(text))
        return Position(int(text[:8], 16), int(text[8:24], 16), int(text[24:], 16))
    except ValueError as error:
        raise DecodeError(f"not a position: {len(text)} characters", hint="expected 32 hex digits") from error


def parse_lsn(text: str) -> int:
    """`16/B374D848` → 64-bit integer (PostgreSQL manual, pg_lsn type)."""
    if _LSN.fullmatch(text) is None:  # int() alone would take signs, spaces, underscores and more than 64 bits
        raise DecodeError(f"not an LSN: {len(text)} characters", hint="expected two hex numbers, e.g. 16/B374D848")
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) | int(low, 16)


def format_lsn(lsn: int) -> str:
    """64-bit integer → PostgreSQL's text form."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
