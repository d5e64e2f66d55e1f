"""What a search asks of a row's columns, and how the values of each kind compare.

A kind is how PostgreSQL would compare a column's values; values are given in their wire form (docs/types.md) or as a
client writes them. Numbers compare exactly, NaN above all of them; times as instants, those without a zone as UTC;
text by code point.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Literal, NamedTuple
from uuid import UUID

from cdc.errors import StoreError

Scalar = bool | int | float | str
Kind = Literal["boolean", "number", "time", "uuid", "text"]
Key = tuple[int, Fraction | str]  # rank, value: below, among, above all finite values, and NaN

BELOW, AMONG, ABOVE, NAN = -1, 0, 1, 2
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
CYCLE_YEARS = 400  # after which the Gregorian calendar repeats itself
CYCLE = timedelta(days=146_097) // MICROSECOND
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")  # a longer exponent is no float's, no row's
_MOMENT = re.compile(r"([0-9]{4,6})(-[0-9]{2}-[0-9]{2}(?:[ T][0-9:.]+(?:Z|[+-][0-9:]+)?)?)( BC)?")
_ENDLESS: Mapping[str, Key] = {
    "NaN": (NAN, ""), "Infinity": (ABOVE, ""), "-Infinity": (BELOW, ""),
    "infinity": (ABOVE, ""), "-infinity": (BELOW, ""),
}  # fmt: skip
_FORMS: Mapping[Kind, str] = {
    "boolean": "true or false",
    "number": "a number",
    "time": "a date or time in ISO 8601",
    "uuid": "a UUID",
    "text": "text",
}


class Condition(NamedTuple):
    """What one column has to be: one of `among` (None: anything but NULL), and within the bounds; `null`: NULL."""

    among: tuple[Scalar, ...] | None = None
    gt: Scalar | None = None
    gte: Scalar | None = None
    lt: Scalar | None = None
    lte: Scalar | None = None
    null: bool = False

    @property
    def operands(self) -> list[Scalar]:
        """All values it names."""
        bounds = (self.gt, self.gte, self.lt, self.lte)
        return [*(self.among or ()), *(bound for bound in bounds if bound is not None)]


class Where(NamedTuple):
    """All of `conditions` have to hold, by column. A column without a kind is of that of its values."""

    conditions: Mapping[str, Condition]
    kinds: Mapping[str, Kind] = {}


def operand(column: str, kind: Kind, value: Scalar) -> Key:
    """What a client wrote, as what rows are compared with. Raises StoreError, without the value."""
    key = key_of(kind, value)
    if key is None:
        raise StoreError(f"the filter on {column} is not {_FORMS[kind]}", hint=f"{column} is compared as {kind}")
    return key


def key_of(kind: Kind, value: Scalar) -> Key | None:
    """Keys of a kind are ordered as its values are; None for what is not of the kind."""
    if kind == "boolean":
        truth = {"true": True, "false": False}.get(value) if isinstance(value, str) else value
        return (AMONG, Fraction(truth)) if isinstance(truth, bool) else None
    if isinstance(value, str):
        return _of_text(kind, value)
    return None if kind != "number" or isinstance(value, bool) else (AMONG, Fraction(repr(value)))


def _of_text(kind: Kind, text: str) -> Key | None:
    if kind == "text":
        return AMONG, text
    if kind == "number" and _NUMBER.fullmatch(text):
        return AMONG, Fraction(text)
    try:
        if kind == "uuid":
            return AMONG, str(UUID(text))
        if kind == "time" and text[-8:].lower() != "infinity":
            return AMONG, Fraction(instant(text))
    except ValueError:
        return None
    return _ENDLESS.get(text)


def instant(text: str) -> int:
    """Microseconds since 1970 in UTC of a date or time as PostgreSQL or a client writes it. Raises ValueError."""
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise ValueError("not a time")
    year = 1 - int(found[1]) if found[3] else int(found[1])
    alike = 2000 + year % CYCLE_YEARS  # a year that Python knows, with the same days
    moment = datetime.fromisoformat(f"{alike}{found[2]}")
    zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (zoned - EPOCH) // MICROSECOND + (year - alike) // CYCLE_YEARS * CYCLE
