"""The columns a search may filter by: a tag and 64 bits a row and column, 9 bytes, beside what the ledger knows.

The tag says what the 64 bits are, so that a column needs no declared type and may change its type: a row means what its
record said. Two values have the same tag and bits exactly when their wire forms are the same (but for 0.0 and -0.0):
numbers and times are kept as numbers only in the one form that PostgreSQL writes, and everything else is text, kept
once for all rows that have it. Only live rows have values. An id of the ledger is the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from consumers.faiss.arrays import Bytes, Ids
from consumers.faiss.cells import INT64, MOST_DIGITS, TIME_RANGE, TIMES, Tag, compact, float_bits

FIRST_ROWS = 1024
GROWTH = 1.5
FIRST_TEXTS = 1024  # kept before the first look which of them are still of a row


class Cells(NamedTuple):
    """Values of one column: tags and 64 bits of each."""

    tags: Bytes
    bits: Ids


class ColumnImage(msgspec.Struct, forbid_unknown_fields=True):
    """One column at one moment, all rows by id, as bytes of little-endian arrays."""

    tags: bytes  # uint8
    bits: bytes  # int64
    texts: list[str]


class FilterColumn:
    """One column. One thread changes it, inside the gate but for `encode`; readers hold the gate."""

    def __init__(self) -> None:
        self.tags: Bytes = np.zeros(FIRST_ROWS, dtype=np.uint8)
        self.bits: Ids = np.zeros(FIRST_ROWS, dtype=np.int64)
        self.texts: list[str] = []
        self._places: dict[str, int] = {}
        self._enough = FIRST_TEXTS
        self._characters = 0

    def encode(self, values: Sequence[Any]) -> Cells:
        """Values as JSON gives them. New texts are added at the end, where no reader looks yet."""
        found = [self._cell(value) for value in values]
        tags, bits = zip(*found, strict=True) if found else ((), ())
        return Cells(np.array(tags, dtype=np.uint8), np.array(bits, dtype=np.int64))

    def _cell(self, value: Any) -> tuple[int, int]:
        if value.__class__ is str:
            place = self._places.get(value)
            return (Tag.TEXT, place) if place is not None else compact(value) or (Tag.TEXT, self._add(value))
        if value is None:
            return Tag.NULL, 0
        if value.__class__ is int and value in INT64:
            return Tag.INTEGER, value
        if value.__class__ is float:
            return Tag.FLOAT, float_bits(value)
        if value.__class__ is bool:
            return Tag.BOOLEAN, int(value)
        return self._cell(msgspec.json.encode(value).decode())  # an array, say: equal when its JSON is

    def _add(self, text: str) -> int:
        place = self._places[text] = len(self.texts)
        self.texts.append(text)
        self._characters += len(text)
        return place

    def find(self, text: str) -> tuple[int, int] | None:
        """Tag and bits of a text; None when no row has it."""
        place = self._places.get(text)
        return (Tag.TEXT, place) if place is not None else compact(text)

    def spelled(self, ids: Ids) -> list[bytes]:
        """A text of each row's value, the same for the same value in every process."""
        here = ids < len(self.tags)
        known = np.where(here, ids, 0)
        pairs = zip(np.where(here, self.tags[known], Tag.NULL).tolist(), self.bits[known].tolist(), strict=True)
        return [self._spelled(tag, bits) for tag, bits in pairs]

    def _spelled(self, tag: int, bits: int) -> bytes:
        text = self.texts[bits].encode() if tag == Tag.TEXT else b"%d" % (bits if tag != Tag.NULL else 0)
        return b"%d:%d:" % (tag, len(text)) + text

    def note(self, ids: Ids, cells: Cells) -> None:
        """What these rows have now."""
        need = int(ids.max(initial=-1)) + 1
        if need > len(self.tags):
            self._grow(max(need, int(len(self.tags) * GROWTH)))
        self.tags[ids], self.bits[ids] = cells

    def _grow(self, rows: int) -> None:
        tags, bits = np.zeros(rows, dtype=np.uint8), np.zeros(rows, dtype=np.int64)
        tags[: len(self.tags)], bits[: len(self.bits)] = self.tags, self.bits
        self.tags, self.bits = tags, bits

    @property
    def worn(self) -> bool:
        """Whether half of the texts may be of no row any more."""
        return len(self.texts) > self._enough

    def fresh(self) -> FilterColumn:
        """The same without texts that no row has; ours stays as it is."""
        column = FilterColumn()
        rows = np.flatnonzero(self.tags == Tag.TEXT)
        used, places = np.unique(self.bits[rows], return_inverse=True)
        column.tags, column.bits = self.tags, self.bits.copy()
        column.bits[rows] = places
        column.keep([self.texts[place] for place in used.tolist()])
        return column

    def keep(self, texts: list[str]) -> None:
        """These, each once, are all texts there are."""
        self.texts = texts
        self._places = {text: place for place, text in enumerate(texts)}
        self._enough = max(FIRST_TEXTS, 2 * len(texts))
        self._characters = sum(map(len, texts))

    def image(self, rows: int) -> ColumnImage:
        """A copy of the first `rows`."""
        have = min(rows, len(self.tags))
        tags, bits = np.zeros(rows, dtype=np.uint8), np.zeros(rows, dtype="<i8")
        tags[:have], bits[:have] = self.tags[:have], self.bits[:have]
        return ColumnImage(tags.tobytes(), bits.tobytes(), self.texts.copy())

    @property
    def nbytes(self) -> int:
        """Without Python's own."""
        return self.tags.nbytes + self.bits.nbytes + self._characters


class Filters:
    """All columns, by name."""

    def __init__(self, names: Sequence[str]) -> None:
        self.columns = {name: FilterColumn() for name in names}

    def encode(self, values: Sequence[Sequence[Any]]) -> list[Cells]:
        """Values a column, in our order → cells a column."""
        return [column.encode(found) for column, found in zip(self.columns.values(), values, strict=True)]

    def note(self, ids: Ids, cells: Sequence[Cells]) -> None:
        """What these rows have now, a `Cells` a column."""
        for column, found in zip(self.columns.values(), cells, strict=True):
            column.note(ids, found)

    def spelled(self, ids: Ids) -> list[bytes]:
        """A text of each row's values, for checksums; empty without columns."""
        columns = [column.spelled(ids) for column in self.columns.values()]
        return [b"".join(values) for values in zip(*columns, strict=True)] if columns else [b""] * len(ids)

    def forget(self, ids: Ids) -> None:
        """These rows have no values any more."""
        none = Cells(np.zeros(len(ids), dtype=np.uint8), np.zeros(len(ids), dtype=np.int64))
        for column in self.columns.values():
            column.note(ids, none)

    @property
    def nbytes(self) -> int:
        """Without Python's own."""
        return sum(column.nbytes for column in self.columns.values())

    def image(self, rows: int) -> dict[str, ColumnImage]:
        """What a snapshot keeps."""
        return {name: column.image(rows) for name, column in self.columns.items()}


def from_image(image: dict[str, ColumnImage], names: Sequence[str], rows: int) -> Filters:
    """The inverse of `Filters.image`. Raises ValueError when it is not of these columns, or does not fit together."""
    filters = Filters(names)
    if list(image) != list(names):
        raise ValueError("the filters are of other columns")
    for name, kept in image.items():
        filters.columns[name] = _column_of(kept, rows)
    return filters


def _column_of(image: ColumnImage, rows: int) -> FilterColumn:
    tags, bits = np.frombuffer(image.tags, dtype=np.uint8), np.frombuffer(image.bits, dtype="<i8")
    if not len(tags) == len(bits) == rows or len(set(image.texts)) != len(image.texts):
        raise ValueError("a filter's rows or texts do not fit together")
    _bounded(bits[tags == Tag.TEXT], 0, len(image.texts) - 1)
    _bounded(bits[tags == Tag.BOOLEAN], 0, 1)
    _bounded(bits[np.isin(tags, TIMES)], *TIME_RANGE)
    _bounded(tags.astype(np.int64), 0, Tag.DECIMAL + MOST_DIGITS)
    column = FilterColumn()
    column.note(np.arange(rows), Cells(tags, bits.astype(np.int64)))
    column.keep(image.texts)
    return column


def _bounded(values: Ids, low: int, high: int) -> None:
    if len(values) and not (values.min() >= low and values.max() <= high):
        raise ValueError("a filter's value is out of range")
