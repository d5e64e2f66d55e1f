"""The rows of one relation in wal2json: which columns a message shows (its shape), and how each value is converted.

A shape is looked up by the names and type oids of the columns, so that a row costs one dict lookup and a loop. An
insert shows every column, an update lacks unchanged TOAST columns; so a shape that fits the last complete one is
taken for a part of it, and anything else makes the catalog look again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from cdc.errors import DecodeError, PreconditionError
from cdc.source.catalog import Catalog
from cdc.source.events import NULL, UNCHANGED, UNKNOWN, Column, Fragment, Table
from cdc.source.layout import Seen, travelling
from cdc.source.relations import Relation
from cdc.source.runs import Way
from cdc.source.types import BOOL, BYTEA, FLOATS, INTEGERS, NONFINITE, boolean, floating, integer, string

Items = Sequence[Any]  # of name: str, typeoid: int, value: msgspec.Raw
Names = tuple[tuple[str, ...], tuple[int, ...]]
Shapes = dict[Names, "Shape"]
Convert = Callable[[bytes], Fragment]  # wal2json's JSON value, null too → fragment

_UNSIGNED = 0xFFFF_FFFF  # wal2json prints oids as signed 32-bit numbers
_PLAIN = {BOOL: boolean, **dict.fromkeys(INTEGERS, integer), **dict.fromkeys(FLOATS, floating)}  # wal2json's own form
_decode_string = msgspec.json.Decoder(str).decode


class Shape:
    """How a message with certain columns becomes a row of `table`; `whole` when it has all of them."""

    def __init__(self, table: Table, seen: Seen) -> None:
        self.table = table
        index = {column.name: i for i, column in enumerate(table.columns)}
        self.targets = [index.get(name, -1) for name, _ in seen]
        self._converters = [None if at < 0 else converter(table.columns[at]) for at in self.targets]
        self.whole = set(self.targets) >= set(range(len(index)))
        self.direct = self.targets == list(range(len(index)))
        self.conversions = [(i, convert) for i, convert in enumerate(self._converters) if convert is not None]
        place = {at: i for i, at in enumerate(self.targets)}
        self._key = [place.get(at) for at in table.key]
        self.ways = [
            Way(at, _how(convert), convert) for at, convert in zip(self.targets, self._converters, strict=True)
        ]
        self.key_ways = [self.ways[i] for i in self._key if i is not None]

    def decode(self, items: Items) -> list[Fragment]:
        """A fragment a column, UNCHANGED for those the message lacks."""
        try:
            return self._decode(items)
        except DecodeError as error:
            table = f"{self.table.schema}.{self.table.name}"
            raise DecodeError(f"wal2json: a row of {table}: {error.message}", hint=error.hint) from error

    def _decode(self, items: Items) -> list[Fragment]:
        if self.direct:
            return [
                bytes(item.value) if convert is None else convert(bytes(item.value))
                for item, convert in zip(items, self._converters, strict=True)
            ]
        row: list[Fragment] = [UNCHANGED] * len(self.table.columns)
        for item, convert, at in zip(items, self._converters, self.targets, strict=True):
            if at >= 0:
                row[at] = bytes(item.value) if convert is None else convert(bytes(item.value))
        return row

    def key_changed(self, items: Items, identity: Items, before: Shape) -> bool:
        """Compares the raw key values; a key column the update lacks is unchanged."""
        for now, then in zip(self._key, before._key, strict=True):
            if now is not None and then is not None and bytes(items[now].value) != bytes(identity[then].value):
                return True
        return False

    def require_key(self) -> None:
        """A delete has to say of which row."""
        if None in self._key:
            table = f"{self.table.schema}.{self.table.name}"
            raise PreconditionError(
                f"a delete of {table} lacks key columns: the replica identity does not cover the key",
                hint=f"ALTER TABLE {table} REPLICA IDENTITY FULL, then run `cdc resync`",
            )


class Rows:
    """The shapes of one relation's messages, under its present layout.

    Inserts, updates and old rows keep theirs apart: the same columns may be all of an insert but a part of an update.
    """

    def __init__(self, catalog: Catalog, relation: Relation) -> None:
        self._catalog, self._relation = catalog, relation
        self._layout: Seen = travelling(relation)
        self._inserts: Shapes = {}
        self._updates: Shapes = {}
        self._olds: Shapes = {}

    def insert(self, items: Items) -> Shape:
        """The shape of a new row, which shows every column."""
        names = _names(items)
        shape = self._inserts.get(names)
        if shape is None:
            seen = _seen(names)
            self._fit(seen, complete=True)
            shape = self._inserts[names] = self._shape(seen)
        return shape

    def update(self, items: Items, identity: Items) -> tuple[Shape, Shape]:
        """The shapes of the new and the old row. Under REPLICA IDENTITY FULL the old one shows every column."""
        new, old = _names(items), _names(identity)
        shape, before = self._updates.get(new), self._olds.get(old)
        if shape is None or before is None:
            seen, shown = _seen(new), _seen(old)
            complete = self._is_complete(shown) and set(shown).issuperset(seen)
            self._fit(shown if complete else tuple(dict.fromkeys(seen + shown)), complete=complete)
            shape = self._updates[new] = self._shape(seen)
            before = self._olds[old] = self._shape(shown)
        return shape, before

    def delete(self, identity: Items) -> Shape:
        """The shape of a deleted row."""
        names = _names(identity)
        shape = self._olds.get(names)
        if shape is None:
            shown = _seen(names)
            self._fit(shown, complete=self._is_complete(shown))
            shape = self._olds[names] = self._shape(shown)
        return shape

    def _is_complete(self, shown: Seen) -> bool:
        """An old row has all columns under REPLICA IDENTITY FULL, unless it was written before that was set."""
        key = self._catalog.root(self._relation).key
        return self._relation.identity.kind == "f" and not {name for name, _ in shown} <= set(key)

    def _fit(self, seen: Seen, *, complete: bool) -> None:
        """Makes the layout one that has these columns."""
        if complete:
            self._change(seen)
        elif not set(self._layout).issuperset(seen):
            self._change(self._catalog.joined(self._relation, seen))
            self._relation = self._catalog.relation(self._relation.oid) or self._relation

    def _change(self, layout: Seen) -> None:
        if layout != self._layout:
            self._layout = layout
            for shapes in (self._inserts, self._updates, self._olds):
                shapes.clear()

    def _shape(self, seen: Seen) -> Shape:
        return Shape(self._catalog.table_of(self._relation, self._layout), seen)


def _names(items: Items) -> Names:
    return tuple([item.name for item in items]), tuple([item.typeoid for item in items])


def _seen(names: Names) -> Seen:
    return tuple((name, oid & _UNSIGNED) for name, oid in zip(*names, strict=True))


def converter(column: Column) -> Convert | None:
    """wal2json's value → fragment; None when they are the same."""
    oid, codec = column.type_oid, column.codec
    null = UNKNOWN if column.nonfinite else NULL
    if _PLAIN.get(oid) is codec and not column.nonfinite:
        return None
    if oid in FLOATS and codec is floating:
        return _finite
    if oid in INTEGERS or oid in NONFINITE:
        return _nullable(codec, null)
    if oid == BOOL:
        return _nullable(lambda value: codec(value[:1]))
    if oid == BYTEA:
        return _nullable(lambda value: codec(b"\\x" + value[1:-1]))
    return None if codec is string else _nullable(lambda value: codec(_text(value)))


def _finite(value: bytes) -> Fragment:
    return UNKNOWN if value == NULL else value


def _how(convert: Convert | None) -> str:
    return "splice" if convert is None else "splice value" if convert is _finite else "call"


def _nullable(convert: Convert, null: Fragment = NULL) -> Convert:
    def encode(value: bytes) -> Fragment:
        return null if value == NULL else convert(value)

    return encode


def _text(value: bytes) -> bytes:
    """What a JSON string holds; without escapes it is what stands between the quotes."""
    return _decode_string(value).encode() if b"\\" in value or value[:1] != b'"' else value[1:-1]
