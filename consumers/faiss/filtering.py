"""Which rows a search's conditions hold for, exactly as PostgreSQL would compare them.

Numbers and times are compared as whole arrays of integers: a bound becomes the integer that lies at or beyond it. What
is not kept as a number (NaN, infinity, text in ranges) is compared once for each text, not for each row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from cdc.errors import StoreError
from consumers.conditions import ABOVE, AMONG, BELOW, Condition, Key, Kind, Where, key_of, operand
from consumers.faiss.arrays import Bytes, Ids, Mask
from consumers.faiss.cells import INT64, TIMES, Tag, decoded
from consumers.faiss.filters import FilterColumn, Filters

Span = tuple[Key | None, bool, Key | None, bool]  # low, whether it is left out, high, whether it is left out

_WHOLE = {"boolean": (Tag.BOOLEAN,), "time": TIMES, "number": (Tag.INTEGER,)}
_TEXTUAL = ("text", "uuid")


def matching(filters: Filters, where: Where, rows: int) -> Mask:
    """Which of the first `rows` ids fulfil all conditions. Raises StoreError for a column that is not kept, and for a
    value that is not of the column's kind."""
    found: Mask = np.ones(rows, dtype=np.bool_)
    for name, condition in where.conditions.items():
        column = filters.columns.get(name)
        if column is None:
            kept = ", ".join(sorted(filters.columns)) or "none"
            raise StoreError("a search by a column that is not indexed", hint=f"[faiss] filters has: {kept}")
        found &= _holds(name, column, condition, where.kinds.get(name), rows)
    return found


def _holds(name: str, column: FilterColumn, condition: Condition, kind: Kind | None, rows: int) -> Mask:
    have = min(rows, len(column.tags))
    tags, bits = column.tags[:have], column.bits[:have]
    kind = kind or _kind_of(tags, condition)
    low, high = _bounds(name, kind, condition)
    points = None if condition.among is None else [operand(name, kind, value) for value in condition.among]
    found: Mask = np.zeros(rows, dtype=np.bool_)
    if condition.null:
        found[:have] = tags == Tag.NULL
        return found
    known = tags != Tag.NULL
    if points is not None:
        known &= _among(column, tags, bits, kind, points)
    if low is not None or high is not None:
        known &= _between(column, tags, bits, kind, (*(low or (None, False)), *(high or (None, False))))
    found[:have] = known
    return found


def _kind_of(tags: Bytes, condition: Condition) -> Kind:
    """What the values are, where nobody knows what the column is. Text of digits is text unless numbers are asked."""
    present = set(_present(tags)) - {Tag.NULL}
    if present <= {Tag.BOOLEAN} and present:
        return "boolean"
    if present <= set(TIMES) and present:
        return "time"
    numbers = all(key_of("number", value) is not None for value in condition.operands)
    whole = present <= {Tag.INTEGER, Tag.FLOAT} and present
    if whole or (numbers and all(tag >= Tag.DECIMAL or tag in (Tag.INTEGER, Tag.FLOAT) for tag in present)):
        return "number"
    return "text"


def _bounds(name: str, kind: Kind, condition: Condition) -> tuple[tuple[Key, bool] | None, tuple[Key, bool] | None]:
    """The tightest: `(key, whether it is left out)` at either end."""
    lows = [(operand(name, kind, v), out) for v, out in ((condition.gte, False), (condition.gt, True)) if v is not None]
    highs = [
        (operand(name, kind, v), out) for v, out in ((condition.lte, False), (condition.lt, True)) if v is not None
    ]
    tightest_high = min(highs, key=lambda bound: (bound[0], not bound[1])) if highs else None
    return max(lows) if lows else None, tightest_high


def _among(column: FilterColumn, tags: Bytes, bits: Ids, kind: Kind, points: Sequence[Key]) -> Mask:
    if kind in _TEXTUAL:
        cells = [cell for point in points if (cell := column.find(str(point[1]))) is not None]
        return _equal(tags, bits, cells)
    cells = []
    for tag, digits in _numeric(tags, kind):
        exact = [point[1] * 10**digits for point in points if point[0] == AMONG and not isinstance(point[1], str)]
        cells += [(tag, int(value)) for value in exact if value.denominator == 1 and int(value) in INT64]
    wanted = set(points)
    found = _equal(tags, bits, cells) | _by_text(column, tags, bits, kind, wanted.__contains__)
    if kind == "number" and (tags == Tag.FLOAT).any():
        floats = [_float(point) for point in points if point[0] == AMONG]
        found |= (tags == Tag.FLOAT) & np.isin(bits.view(np.float64), floats)
    return found


def _equal(tags: Bytes, bits: Ids, cells: Sequence[tuple[int, int]]) -> Mask:
    found: Mask = np.zeros(len(tags), dtype=np.bool_)
    for tag in {tag for tag, _value in cells}:
        values = [value for other, value in cells if other == tag]
        found |= (tags == tag) & (bits == values[0] if len(values) == 1 else np.isin(bits, values))
    return found


def _between(column: FilterColumn, tags: Bytes, bits: Ids, kind: Kind, span: Span) -> Mask:
    if kind in _TEXTUAL:
        return _by_value(column, tags, bits, kind, lambda key: _inside(key, span))
    found = _by_text(column, tags, bits, kind, lambda key: _inside(key, span))
    for tag, digits in _numeric(tags, kind):
        low, high = _integers(span, digits)
        if low <= high:
            found |= (tags == tag) & (bits >= low) & (bits <= high)
    if kind == "number" and (tags == Tag.FLOAT).any():
        found |= (tags == Tag.FLOAT) & _floats_inside(bits.view(np.float64), span)
    return found


def _numeric(tags: Bytes, kind: Kind) -> list[tuple[int, int]]:
    """Tags of whole numbers that are there, with their digits behind the point."""
    whole = [(int(tag), 0) for tag in _WHOLE[kind]]
    decimal = [(tag, tag - Tag.DECIMAL) for tag in _present(tags) if tag >= Tag.DECIMAL]
    return whole + decimal if kind == "number" else whole


def _present(tags: Bytes) -> list[int]:
    found: list[int] = np.flatnonzero(np.bincount(tags, minlength=1)).tolist()
    return found


def _integers(span: Span, digits: int) -> tuple[int, int]:
    """The lowest and the highest integer within, of numbers with so many digits behind the point."""
    low, low_out, high, high_out = span
    least, most = INT64.start, INT64.stop - 1
    if low is not None and low[0] != BELOW:
        value = _scaled(low, digits)
        least = most + 1 if value is None else max(least, math.floor(value) + 1 if low_out else math.ceil(value))
    if high is not None and high[0] < ABOVE:
        value = _scaled(high, digits)
        most = least - 1 if value is None else min(most, math.ceil(value) - 1 if high_out else math.floor(value))
    return least, most


def _scaled(key: Key, digits: int) -> Fraction | None:
    """None for what is beyond all numbers."""
    return key[1] * 10**digits if key[0] == AMONG and not isinstance(key[1], str) else None


def _floats_inside(values: Any, span: Span) -> Mask:
    low, low_out, high, high_out = span
    found: Mask = np.ones(len(values), dtype=np.bool_)
    if low is not None:
        found &= values > _float(low) if low_out else values >= _float(low)
    if high is not None:
        found &= values < _float(high) if high_out else values <= _float(high)
    return found


def _float(key: Key) -> float:
    """NaN and infinity are above and below all floats that are kept."""
    if key[0] != AMONG or isinstance(key[1], str):
        return math.inf if key[0] > AMONG else -math.inf
    try:
        return float(key[1])
    except OverflowError:
        return math.inf if key[1] > 0 else -math.inf


def _by_text(column: FilterColumn, tags: Bytes, bits: Ids, kind: Kind, holds: Callable[[Key], bool]) -> Mask:
    """Of rows that are kept as text."""
    rows = np.flatnonzero(tags == Tag.TEXT)
    found: Mask = np.zeros(len(tags), dtype=np.bool_)
    if len(rows):
        found[rows] = _by_value(column, tags[rows], bits[rows], kind, holds)
    return found


def _by_value(column: FilterColumn, tags: Bytes, bits: Ids, kind: Kind, holds: Callable[[Key], bool]) -> Mask:
    """Each value decoded and compared once, however many rows have it."""
    found: Mask = np.zeros(len(tags), dtype=np.bool_)
    for tag in _present(tags):
        rows = np.flatnonzero(tags == tag)
        values, of_row = np.unique(bits[rows], return_inverse=True)
        found[rows] = np.array([_fulfils(decoded(column.texts, tag, value), kind, holds) for value in values.tolist()])[
            of_row
        ]
    return found


def _fulfils(value: Any, kind: Kind, holds: Callable[[Key], bool]) -> bool:
    key = None if value is None else key_of(kind, value)
    return key is not None and holds(key)


def _inside(key: Key, span: Span) -> bool:
    low, low_out, high, high_out = span
    above = low is None or (key > low if low_out else key >= low)
    return above and (high is None or (key < high if high_out else key <= high))
