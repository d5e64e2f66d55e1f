"""One value as a tag and 64 bits: how the columns that searches filter by are kept.

Numbers and times become numbers only from the one form that PostgreSQL writes, so that `decoded` gives back what came,
to the character; all else is text, which somebody else keeps.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any

from consumers.conditions import EPOCH, MICROSECOND

MOST_DIGITS = 18  # behind the point, of numbers kept as numbers
INT64 = range(-(1 << 63), 1 << 63)

_DECIMAL = re.compile(r"(0|-?[1-9][0-9]{0,17}|-0(?=\.0*[1-9]))(?:\.([0-9]{1,18}))?")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?: [0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{0,5}[1-9])?(\+00)?)?")
_DATE_LENGTH = 10
_bits = struct.Struct("<d")
_int = struct.Struct("<q")


class Tag(IntEnum):
    """What the 64 bits are: DECIMAL + n is an integer whose last n digits are behind the point; a time is
    microseconds since 1970; TEXT is a place among texts."""

    NULL = 0
    BOOLEAN = 1
    INTEGER = 2
    FLOAT = 3
    TEXT = 4
    DATE = 5
    TIMESTAMP = 6
    TIMESTAMPTZ = 7
    DECIMAL = 8  # + the number of digits behind the point


TIMES = (Tag.DATE, Tag.TIMESTAMP, Tag.TIMESTAMPTZ)
TIME_RANGE = tuple(
    (moment.replace(tzinfo=EPOCH.tzinfo) - EPOCH) // MICROSECOND for moment in (datetime.min, datetime.max)
)


def float_bits(value: float) -> int:
    """A float's 64 bits as an integer."""
    return int(_int.unpack(_bits.pack(value))[0])


def compact(text: str) -> tuple[int, int] | None:
    """Tag and bits of a number or time in the form PostgreSQL writes; None for all else."""
    first = text[:1]
    if not ("0" <= first <= "9" or first == "-"):
        return None
    if text[4:5] == "-":
        return _time(text)
    found = _DECIMAL.fullmatch(text)
    if found is None:
        return None
    digits = found[2] or ""
    number = int(f"{found[1]}{digits}")
    return (Tag.DECIMAL + len(digits), number) if number in INT64 else None


def _time(text: str) -> tuple[int, int] | None:
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=EPOCH.tzinfo)
    tag = Tag.DATE if len(text) == _DATE_LENGTH else Tag.TIMESTAMPTZ if found[1] else Tag.TIMESTAMP
    return tag, (moment - EPOCH) // MICROSECOND


def decoded(texts: Sequence[str], tag: int, bits: int) -> Any:
    """The value as JSON gave it; `texts` by their places."""
    if tag == Tag.TEXT:
        return texts[bits]
    if tag >= Tag.DECIMAL:
        digits = tag - Tag.DECIMAL
        text = f"{abs(bits):0{digits + 1}d}"
        return "-" * (bits < 0) + (f"{text[:-digits]}.{text[-digits:]}" if digits else text)
    if tag in TIMES:
        moment = EPOCH.replace(tzinfo=None) + timedelta(microseconds=bits)
        text = moment.isoformat(" ")[::1] if tag != Tag.DATE else moment.date().isoformat()
        return (text.rstrip("0") if "." in text else text) + "+00" * (tag == Tag.TIMESTAMPTZ)
    if tag == Tag.FLOAT:
        return _bits.unpack(_int.pack(bits))[0]
    return None if tag == Tag.NULL else bool(bits) if tag == Tag.BOOLEAN else bits
