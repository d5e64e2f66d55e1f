"""From a row's fragments to the bytes of its record: one `%` of a prepared template a row, no object beyond that.

The part of the envelope that a source transaction has in common (commit time, LSN, xid, version vector) is put into the
template once a transaction and table; what remains a row is its columns and its ordinal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from cdc import __version__
from cdc.envelope import POSITION_HEADER, VERSION_HEADER
from cdc.errors import MALFORMED, DecodeError, PreconditionError
from cdc.kafka.block import Block, Rows
from cdc.metrics import READER_FILLED
from cdc.source.events import Fragment, Table
from cdc.source.runs import COMPILED, Packed, compiled
from cdc.version import decode_vector, encode_vector

Headers = list[tuple[str, bytes]]
_FIXED = 24  # hex digits of a position before its ordinal
SNAPSHOT_HEAD = b'{"op":"r","before":null,"after":{'
OP = slice(7, 8)  # of a value, all of which begin with {"op":"c", {"op":"u" …
_json = msgspec.json.encode
_text = msgspec.json.Decoder(str)


class Origin:
    """What never changes while a reader runs."""

    def __init__(self, name: str, database: str, epoch: int) -> None:
        self.name, self.database, self.epoch = name, database, epoch


class Envelope:
    """The templates of one table within one source transaction (or snapshot chunk). Ordinals are the caller's."""

    def __init__(self, origin: Origin, table: Table, commit: tuple[int, int, int], *, snapshot: bool = False) -> None:
        self.xid, lsn, commit_us = commit
        self.table = table
        self.timestamp_ms = commit_us // 1000
        self._position = b"%08x%016x%%08x" % (origin.epoch, lsn)
        self._default = encode_vector({origin.name: lsn})
        self._tail = _tail(origin, table, commit, snapshot)
        self._upsert = _row(table) + self._tail
        self._column = table.version_index
        self._target: Any = None

    def key(self, fragments: Sequence[Fragment]) -> bytes:
        """The record key of a row. Raises PreconditionError when the stream does not tell it."""
        table = self.table
        try:
            return table.key_template % tuple([fragments[i] for i in table.key])
        except TypeError as error:  # a mark: cheaper to be told than to look at every fragment
            raise PreconditionError(
                f"a row of {table.schema}.{table.name} comes without its key: a key column was renamed while the row "
                "waited, or holds NaN or Infinity, which wal2json shows as null",
                hint="run `cdc resync`, which reads the tables as they are now; for NaN in keys use pgoutput",
            ) from error

    def upsert(self, op: bytes, row: list[Fragment], ordinal: int, filled: Sequence[str] = ()) -> tuple[bytes, Headers]:
        """`(value, headers)` of a c, u or r; every fragment has to be JSON by now."""
        vector = self._default if self._column is None else self._vector(row[self._column])
        named = _json(list(filled)) if filled else b"[]"
        return self._upsert % (op, *row, vector, named, ordinal), self.headers(ordinal, vector)

    def snapshot(self, row: Packed, ordinal: int) -> tuple[bytes, Headers]:
        """`(value, headers)` of an r."""
        _key, body, version = row
        vector = self._default if version is None else self._vector(version)
        value = SNAPSHOT_HEAD + body + b"}" + self._tail % (vector, b"[]", ordinal)
        return value, self.headers(ordinal, vector)

    def delete(self, old: Sequence[Fragment], ordinal: int) -> tuple[bytes, Headers]:
        """`(value, headers)` of a d; `before` holds the key columns."""
        head = b'{"op":"d","before":%b,"after":null' % self.key(old)
        return head + self._tail % (self._default, b"[]", ordinal), self.headers(ordinal, self._default)

    def marker(self, below: str, ordinal: int) -> tuple[bytes, Headers]:
        """`(value, headers)` of a truncate or sweep: every row with a position below `below` is gone."""
        tail = self._tail % (self._default, b"[]", ordinal)
        value = b'{"op":"t","before":null,"after":null' + tail.replace(b'"below":null', b'"below":%b' % _json(below), 1)
        return value, self.headers(ordinal, self._default)

    def block(self, rows: Rows, after: int) -> Block | None:
        """Rows of a snapshot, all at once; None where they have version vectors of their own."""
        if self._column is not None:
            return None
        tail, end = self._ends()
        names, position = (POSITION_HEADER, VERSION_HEADER), self._position[:_FIXED]
        return Block(rows, after, self.timestamp_ms, SNAPSHOT_HEAD, tail, end, names, position, self._default)

    def _ends(self) -> tuple[bytes, bytes]:
        """What follows a row's columns, before and behind the ordinal."""
        before, _, after = self._tail.rpartition(b"%d")
        return b"}" + before % (self._default, b"[]"), after % ()

    @property
    def target(self) -> Any:
        """Where runs put records (see runs.py): None without the compiled half, or where rows have version vectors."""
        if self._target is None and COMPILED and self._column is None:
            names = (POSITION_HEADER, VERSION_HEADER)
            position = self._position[:_FIXED]
            self._target = compiled.Target(names, self.timestamp_ms, position, self._default, *self._ends())
        return self._target

    def headers(self, ordinal: int, vector: bytes) -> Headers:
        """Position and version vector, as tombstones carry them too."""
        return [(POSITION_HEADER, self._position % ordinal), (VERSION_HEADER, vector)]

    def _vector(self, fragment: Fragment) -> bytes:
        """The row's own version vector; counted and replaced by the default when it is none."""
        try:
            return encode_vector(decode_vector(_text.decode(fragment)))
        except (*MALFORMED, DecodeError):
            READER_FILLED.labels(f"{self.table.schema}.{self.table.name}", "bad version vector").inc()
            return self._default


def _row(table: Table) -> bytes:
    return b'{"op":"%b","before":null,"after":{' + table.row_template + b"}"


def _tail(origin: Origin, table: Table, commit: tuple[int, int, int], snapshot: bool) -> bytes:
    """`,"source":{…},"ts_ms":…,"transaction":null}` with %b vector, %b filled, %d ordinal. Debezium's field names
    first."""
    xid, lsn, commit_us = commit
    fixed = {
        "version": __version__,
        "connector": "postgresql",
        "name": origin.name,
        "ts_ms": commit_us // 1000,
        "ts_us": commit_us,
        "snapshot": "true" if snapshot else "false",
        "db": origin.database,
        "schema": table.schema,
        "table": table.name,
        "txId": None if snapshot else xid,
        "lsn": lsn,
        "epoch": origin.epoch,
        "below": None,
    }
    source = _json(fixed)[:-1].replace(b"%", b"%%")
    return (
        b',"source":'
        + source
        + b',"vector":%b,"filled":%b,"ordinal":%d},"ts_ms":'
        + b"%d" % (commit_us // 1000)
        + b',"transaction":null}'
    )
