"""A record's JSON → what apply.lua stores: one value a column, each number and array as its exact JSON text.

Strings stand as their text, booleans as true/false, NULL is absent. Only the table's configured `vector` column is
read as a vector: a text column may hold "f32:" by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from cdc.config import Table
from cdc.envelope import float_bytes
from cdc.errors import MALFORMED, ConfigError, DecodeError, RecordError
from consumers.redis.keys import encode_odd
from consumers.store import Record

STALE = "_stale"  # position and reason of a newer record that could not be stored: what the hash holds is outdated
RESERVED = frozenset(("_pos", "_ver", "_ts", "_key", STALE))
DELETE, PARK = 0, -1  # in place of a shape's number
VALUE_BYTES = 500 << 20  # Redis takes strings of 512 MiB (proto-max-bulk-len); position, vector and key come beside
UPSERTS = frozenset("cur")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OPEN_ENDS = {"infinity": "+inf", "-infinity": "-inf"}

Value = str | msgspec.Raw | None
Fix = Callable[[Any], Value]


class _Source(msgspec.Struct, gc=False):
    ts_us: int


class _Change(msgspec.Struct, gc=False):
    """One pass over the JSON: what `cdc.envelope.decode_after` does in two. Floats keep their text by the hook."""

    op: str
    source: _Source
    after: dict[str, Any] | None = None


class _RawRow(msgspec.Struct, gc=False):
    after: dict[str, msgspec.Raw]


_CHANGE = msgspec.json.Decoder(_Change, float_hook=str)
_RAW_ROW = msgspec.json.Decoder(_RawRow)


class _Fixes(NamedTuple):
    """What values of certain Python types still need: places of numbers, and places with what to do there."""

    numbers: list[int]
    others: list[tuple[int, Fix]]


class Shape:
    """Rows with the same columns; `_fixes` by the Python types of a row's values."""

    def __init__(self, number: int, columns: tuple[str, ...], settings: Table, vectors: str) -> None:
        self.number = number
        self.columns = columns
        self.user = columns.index(settings.user) if settings.user else None
        self.recency = columns.index(settings.recency) if settings.recency and settings.user else None
        self._vector = columns.index(settings.vector) if settings.vector in columns else None
        self._vector_fix: Fix = _vector if vectors == "bytes" else _nothing
        self._fixes: dict[tuple[type, ...], _Fixes | None] = {}

    def plain(self, value: bytes, row: dict[str, Any]) -> list[Value]:
        """The row's values in the order of its columns."""
        values = list(row.values())
        kinds = tuple(map(type, values))
        try:
            fixes = self._fixes[kinds]
        except KeyError:
            fixes = self._fixes[kinds] = self._fixes_of(kinds)
        if fixes is None:  # arrays have to keep their JSON text
            return self._exact(value)
        for index in fixes.numbers:
            number = values[index]
            if number == 0 and b":-0" in value:  # which has lost its sign; a look at each row would cost 0.7 µs
                return self._exact(value)
            values[index] = str(number)
        for index, fix in fixes.others:
            values[index] = fix(values[index])
        return values

    def _fixes_of(self, kinds: tuple[type, ...]) -> _Fixes | None:
        if list in kinds or dict in kinds:
            return None
        fixes = _Fixes([], [])
        for index, kind in enumerate(kinds):
            if index == self._vector and kind is not type(None):
                fixes.others.append((index, self._vector_fix))
            elif kind is bool:
                fixes.others.append((index, _boolean))
            elif kind is int:
                fixes.numbers.append(index)
        return fixes

    def _exact(self, value: bytes) -> list[Value]:
        values = [_text(bytes(raw)) for raw in _RAW_ROW.decode(value).after.values()]
        if self._vector is not None and values[self._vector] is not None:
            values[self._vector] = self._vector_fix(values[self._vector])
        return values


class RowEncoder:
    """Encodes the records of one table. Errors name the table, never a value."""

    def __init__(self, name: str, settings: Table, vectors: str, index_prefix: str) -> None:
        self._name = name
        self._settings = settings
        self._vectors = vectors
        self._index_prefix = index_prefix
        self._shapes: dict[tuple[str, ...], Shape] = {}
        self.shapes: list[tuple[str, ...]] = []

    def encode(self, record: Record, key: str | None) -> list[Any]:
        """`[position, vector, shape, ts, _key, index key, score, values…]`, or `[position, vector, DELETE]`.

        Raises RecordError for what cannot be stored, ConfigError for settings that do not fit the table."""
        value = record.value
        try:
            position, vector = record.position.decode(), record.vector.decode()
            if value is None:
                return [position, vector, DELETE]
            if len(value) > VALUE_BYTES:
                raise RecordError("too_large", f"a record of {self._name} has {len(value)} bytes: Redis takes less")
            change = _CHANGE.decode(value)
        except MALFORMED as error:
            raise RecordError("decode", f"a record of {self._name} is not a change event: {error}") from error
        if change.op == "d":
            return [position, vector, DELETE]
        if change.op not in UPSERTS:
            raise RecordError("op", f"a record of {self._name} has an op that is none of c, u, r and d")
        row = change.after
        if row is None:
            raise RecordError("decode", f"a change of {self._name} comes without its row")
        shape = self._shapes.get(tuple(row)) or self._shape(tuple(row))
        try:
            values = shape.plain(value, row)
        except DecodeError as error:
            raise RecordError("vector", f"{self._name}.{self._settings.vector}: {error.message}") from error
        head = [position, vector, shape.number, str(change.source.ts_us), key, None, None]
        if shape.user is not None and values[shape.user] is not None:
            head[5] = self._index_prefix + encode_odd(str(values[shape.user]))
            head[6] = self._score(shape, values) or head[3]
        return head + values

    def _shape(self, columns: tuple[str, ...]) -> Shape:
        table, settings = self._name, self._settings
        if taken := RESERVED & set(columns):
            raise RecordError(
                "reserved",
                f"{table} has a column named {min(taken)}, which the Redis store needs for itself: rename it, or set "
                f'tables."{table}".exclude = ["{min(taken)}"]',
            )
        for role in ("user", "recency"):
            column = getattr(settings, role)
            if column is not None and column not in columns:
                raise ConfigError(
                    f'tables."{table}".{role} = {column!r}: the records have no such column',
                    hint="name a column of the table that is not excluded or dropped",
                )
        shape = Shape(len(self.shapes) + 1, columns, settings, self._vectors)
        self.shapes.append(columns)
        self._shapes[columns] = shape
        return shape

    def _score(self, shape: Shape, values: list[Value]) -> Value:
        """Microseconds since 1970 of the recency column; None when it is NULL."""
        if shape.recency is None or (text := values[shape.recency]) is None:
            return None
        try:
            return microseconds(str(text))
        except ValueError as error:
            raise RecordError(
                "recency",
                f"{self._name}.{self._settings.recency} holds no timestamp",
                hint="name a timestamp column in `recency`",
            ) from error


def microseconds(text: str) -> Value:
    """A score: of a timestamp's wire form, or of a number of microseconds; raises ValueError. No zone is UTC."""
    if text[4:5] != "-" or text.endswith("BC"):
        return _unusual(text)
    moment = datetime.fromisoformat(text)
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return str((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


def _unusual(text: str) -> Value:
    """What lies beyond Python's years stands at the ends: such timestamps are sentinels, not recent memories."""
    if text in _OPEN_ENDS:
        return _OPEN_ENDS[text]
    if text.endswith("BC"):
        return "-inf"
    year, dash, _ = text.partition("-")
    if dash and year.isdigit():
        return "+inf"
    return str(int(text))


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def _nothing(value: object) -> None:
    return None


def _vector(value: object) -> msgspec.Raw:
    """Raw floats as a MessagePack str 32 (its specification, "str format family"): Redis' cmsgpack knows no bin."""
    if not isinstance(value, str):
        raise DecodeError("a vector is not in its wire form")
    raw = float_bytes(value)
    return msgspec.Raw(b"\xdb" + len(raw).to_bytes(4, "big") + raw)


def _text(raw: bytes) -> Value:
    if raw[:1] == b'"':
        return msgspec.json.decode(raw, type=str)
    return None if raw == b"null" else raw.decode()
