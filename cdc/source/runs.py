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
from typing import Any, NamedTuple, Protocol, cast

import msgspec

from cdc.errors import DecodeError
from cdc.kafka.block import Packed, flat
from cdc.source.copy_text import NO_LINE, cells
from cdc.source.events import NULL, Fragment, Run, Table
from cdc.source.types import floating, integer, numeric, string

try:
    from cdc.source import _runs as compiled
except ImportError:  # no compiler where it was installed
    compiled, COMPILED = cast(Any, None), False
else:
    COMPILED = not os.environ.get("CDC_PURE_PYTHON")

__all__ = [
    "COMPILED", "HOWS", "CopyReader", "Item", "Packed", "Taken", "Way", "compiled", "copy_reader", "literals", "packed",
    "pgoutput_run", "result_reader", "wal2json_run",
]  # fmt: skip
_MARKS = re.compile(rb"%%|%b")
Convert = Callable[[bytes], Any]
Get = Callable[[int, int], bytes | None]  # row, column → PostgreSQL's text
ResultReader = Callable[[Get, int, list[Packed]], int]  # text, rows, where to append them → their size in bytes
Take = Callable[[int], tuple[int, Any]]  # libpq's get_copy_data
HOWS: dict[Convert, str] = {string: "text", integer: "integer", floating: "number", numeric: "quoted"}


class Taken(NamedTuple):
    """Lines of COPY that were there: how many, the bytes of the longest key and body, the last one, and what
    get_copy_data said then (0: nothing more yet, -1: the end)."""

    rows: int
    largest: int
    last: bytes
    answer: int


CopyReader = Callable[[Take, list[bytes]], Taken]  # appends flat rows (cdc/kafka/block.py) to a list


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
    result = _result(table)
    return lambda get, count, rows: result.rows(get, count, version, rows)


def copy_reader(table: Table) -> CopyReader:
    """What reads lines of COPY with the table's columns, in their order."""
    version = -1 if table.version_index is None else table.version_index
    if not COMPILED:
        return lambda get, pieces: _copied(table, get, pieces)
    result = _result(table)
    return lambda get, pieces: Taken(*result.copied(get, version, pieces))


def _result(table: Table) -> Any:
    ways = [Way(place, HOWS.get(column.codec, "call"), column.codec) for place, column in enumerate(table.columns)]
    return compiled.Result(_layout(table), b"", *_columns(ways))


def _copied(table: Table, get: Take, pieces: list[bytes]) -> Taken:
    found: list[bytes] = []
    largest, line = 0, b""
    while True:
        count, data = get(1)
        if count <= 0:
            break
        line = bytes(data)
        texts = cells(line)
        if len(texts) != len(table.columns):
            raise DecodeError(NO_LINE)
        row = packed(table, _fragments(table, texts))
        found.append(flat(row))
        largest = max(largest, len(row[0]) + len(row[1]))
    if found:
        pieces.append(b"".join(found))
    return Taken(len(found), largest, line, count)


def _fragments(table: Table, texts: Sequence[bytes | None]) -> list[Fragment]:
    codecs = [column.codec for column in table.columns]
    return [NULL if text is None else codec(text) for codec, text in zip(codecs, texts, strict=True)]


def _read(table: Table, get: Get, count: int, rows: list[Packed]) -> int:
    size = 0
    for row in range(count):
        texts = [get(row, column) for column in range(len(table.columns))]
        rows.append(packed(table, _fragments(table, texts)))
        size += len(rows[-1][1])
    return size


def packed(table: Table, row: Sequence[Fragment]) -> Packed:
    """A whole row as a snapshot keeps it."""
    version = None if table.version_index is None else row[table.version_index]
    key = table.key_template % tuple([row[place] for place in table.key])
    return key, table.row_template % tuple(row), version


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
