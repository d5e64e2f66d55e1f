"""Runs: messages that differ only in their values, straight from the plugin's bytes to records.

A decoder that has met an insert or an update of a table knows all about the next one with the same columns. Where the
compiled half (`_runs.pyx`) is there, it takes such messages as long as they match to the last byte, 0.7 µs each where
decoder, assembler and envelope need 6 together, and makes the very records those would make (tests/unit/test_runs.py).
What does not match goes the ordinary way, one message at a time. Without the compiled half everything does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from cdc.source.events import NULL, Fragment, Run, Table
from cdc.source.types import floating, integer, numeric, string

try:
    from cdc.source import _runs as compiled
except ImportError:  # no compiler where it was installed
    COMPILED = False
else:
    COMPILED = not os.environ.get("CDC_PURE_PYTHON")

__all__ = [
    "COMPILED", "HOWS", "Item", "Packed", "Way", "compiled", "literals", "packed", "pgoutput_run", "result_reader",
    "wal2json_run",
]  # fmt: skip
_MARKS = re.compile(rb"%%|%b")
Convert = Callable[[bytes], Any]
Get = Callable[[int, int], bytes | None]  # row, column → PostgreSQL's text
Packed = tuple[bytes, bytes, Any]  # key, the row's JSON without its braces, the fragment of its version vector or None
ResultReader = Callable[[Get, int, list[Packed]], int]  # text, rows, where to append them → their size in bytes
HOWS: dict[Convert, str] = {string: "text", integer: "integer", floating: "number", numeric: "quoted"}


class Item(Protocol):
    """A column of a wal2json message."""

    name: str
    typeoid: int


class Way(NamedTuple):
    """What becomes of a column's value: its place in the table (-1: it does not travel), how, and its converter.

    `how`: call (the converter), splice (as it is), splice value (but null is for the ordinary way), text (a JSON
    string), integer, number, quoted (a number as a string); the last four ask the converter about the unexpected.
    """

    place: int
    how: str
    convert: Convert | None


def wal2json_run(
    op: bytes,
    table: Table,
    start: bytes,
    columns: Sequence[Item],
    ways: Sequence[Way],
    identity: Sequence[tuple[Item, int]] = (),
) -> Run:
    """`start` is a message's part from its schema up to its columns; `ways` the place, kind and converter of each
    column; `identity` an update's old columns, each with the place whose value it has to repeat (-1: any)."""
    opened = [start + b',"columns":[{' + _named(columns[0])] + [b"},{" + _named(column) for column in columns[1:]]
    old: list[bytes] = []
    for number, (item, _) in enumerate(identity):
        old.append((b"},{" if number else b'}],"identity":[{') + _named(item))
    same = tuple(place for _, place in identity)
    made: Run = compiled.Wal2jsonRun(
        _layout(table), _head(op), *_columns(ways), (*opened, b"}]}"), tuple(old), same
    )  # fmt: skip
    return made


def pgoutput_run(op: bytes, table: Table, start: bytes, ways: Sequence[Way]) -> Run:
    """`start` is a message up to its columns."""
    made: Run = compiled.PgoutputRun(_layout(table), _head(op), *_columns(ways), start)
    return made


def result_reader(table: Table) -> ResultReader:
    """What reads rows of a query for the table's columns, in their order."""
    version = -1 if table.version_index is None else table.version_index
    if not COMPILED:
        return lambda get, count, rows: _read(table, get, count, rows)
    ways = [Way(place, HOWS.get(column.codec, "call"), column.codec) for place, column in enumerate(table.columns)]
    result = compiled.Result(_layout(table), b"", *_columns(ways))
    return lambda get, count, rows: result.rows(get, count, version, rows)


def _read(table: Table, get: Get, count: int, rows: list[Packed]) -> int:
    codecs, size = [column.codec for column in table.columns], 0
    for row in range(count):
        values = [get(row, column) for column in range(len(codecs))]
        cells = [NULL if value is None else codec(value) for codec, value in zip(codecs, values, strict=True)]
        rows.append(packed(table, cells))
        size += len(rows[-1][1])
    return size


def packed(table: Table, cells: Sequence[Fragment]) -> Packed:
    """A whole row as a snapshot keeps it."""
    version = None if table.version_index is None else cells[table.version_index]
    key = table.key_template % tuple([cells[place] for place in table.key])
    return key, table.row_template % tuple(cells), version


def _columns(ways: Sequence[Way]) -> tuple[tuple[int, ...], tuple[str, ...], tuple[Convert | None, ...]]:
    return tuple(way.place for way in ways), tuple(way.how for way in ways), tuple(way.convert for way in ways)


def _named(item: Item) -> bytes:
    return b'"name":%b,"typeoid":%d,"value":' % (msgspec.json.encode(item.name), item.typeoid)


def _head(op: bytes) -> bytes:
    return b'{"op":"%b","before":null,"after":{' % op


def _layout(table: Table) -> Any:
    return compiled.Layout(table, literals(table.key_template), literals(table.row_template))


def literals(template: bytes) -> tuple[bytes, ...]:
    """What stands between the `%b` of a template."""
    parts, at = [b""], 0
    for mark in _MARKS.finditer(template):
        parts[-1] += template[at : mark.start()]
        at = mark.end()
        if mark[0] == b"%b":
            parts.append(b"")
        else:
            parts[-1] += b"%"
    parts[-1] += template[at:]
    return tuple(parts)
