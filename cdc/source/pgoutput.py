"""pgoutput, protocol version 1 with text values: one message a payload → one event.

Message formats: PostgreSQL manual, "Logical Replication Message Formats". Relation messages carry the columns as they
were when the rows were written and come again after each DDL; the catalog adds the rest. With
publish_via_partition_root the server names the root, without it the partition, whose rows go under the root's name
all the same.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from cdc.errors import DecodeError
from cdc.source.catalog import Catalog
from cdc.source.events import (
    MESSAGE_PREFIX,
    UNCHANGED,
    Begin,
    Commit,
    Event,
    Message,
    Row,
    Run,
    Truncate,
)
from cdc.source.layout import Seen
from cdc.source.pgoutput_rows import HINT, INT16, INT32, Shape, forget_unknown, read_tuple
from cdc.source.relations import Relation
from cdc.source.runs import COMPILED, pgoutput_run
from cdc.source.truncation import folded

_BEGIN: Final = struct.Struct("!QqI")  # commit LSN, commit time, xid
_COMMIT: Final = struct.Struct("!xQQq")  # flags, commit LSN, end LSN, commit time
_MESSAGE: Final = struct.Struct("!BQ")  # flags (1: transactional), LSN
_TRUNCATE: Final = struct.Struct("!IB")  # relations, options
_COLUMN: Final = struct.Struct("!Ii")  # type oid, type modifier
_PG_EPOCH_US: Final = 946_684_800_000_000  # 2000-01-01 in microseconds since 1970-01-01
_KIND_BYTES: Final = 6  # of a row: I or U, relation oid, N
_OLD, _KEY, _NEW = b"OKN"


class PgoutputDecoder:
    """The Decoder of a slot with pgoutput. Asks the catalog about each Relation message."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._shapes: dict[int, Shape | None] = {}  # by relation oid; None: not selected
        self._runs: dict[bytes, Run] = {}  # by the beginning of their messages
        self._readers: dict[int, Callable[[bytes], Event | None]] = {
            ord("B"): self._begin,
            ord("C"): self._commit,
            ord("R"): self._relation,
            ord("I"): self._insert,
            ord("U"): self._update,
            ord("D"): self._delete,
            ord("T"): self._truncate,
            ord("M"): self._message,
            ord("Y"): _nothing,  # Type
            ord("O"): _nothing,  # Origin
        }

    def options(self) -> dict[str, str]:
        """Protocol 1: whole transactions after their commit; messages need PostgreSQL 14."""
        publication = self._catalog.config.postgres.publication
        return {"proto_version": "1", "publication_names": f'"{publication}"', "messages": "true"}

    def overtaken(self, _lsn: int) -> bool:
        """Never: its Relation messages tell."""
        return False

    def run(self, payload: bytes) -> Run | None:
        """See `Decoder`."""
        return self._runs.get(payload[:_KIND_BYTES])

    def decode(self, payload: bytes) -> Event | None:
        """One payload; see `Decoder`. Raises DecodeError, and PreconditionError for what no event can say."""
        data = bytes(payload)
        reader = self._readers.get(data[0] if data else -1)
        if reader is None:
            raise DecodeError("pgoutput: unknown message at byte 0", hint=HINT)
        try:
            return reader(data)
        except (struct.error, IndexError) as error:
            raise DecodeError(f"pgoutput: message cut off at byte {len(data)}", hint=HINT) from error

    def _begin(self, data: bytes) -> Begin:
        lsn, committed, xid = _BEGIN.unpack_from(data, 1)
        return Begin(xid, lsn, committed + _PG_EPOCH_US)

    def _commit(self, data: bytes) -> Commit:
        lsn, end, _ = _COMMIT.unpack_from(data, 1)
        return Commit(lsn, end)

    def _relation(self, data: bytes) -> None:
        oid = INT32(data, 1)[0]
        _, at = _cstring(data, 5)
        _, at = _cstring(data, at)
        count = INT16(data, at + 1)[0]  # after one byte of replica identity
        at += 3
        seen = []
        for _ in range(count):
            name, at = _cstring(data, at + 1)  # after one byte of flags
            type_oid, _ = _COLUMN.unpack_from(data, at)
            seen.append((name, type_oid))
            at += _COLUMN.size
        _whole(data, at)
        relation = self._catalog.refresh(oid)
        selected = relation is not None and self._catalog.selects(relation)
        shape = self._shapes[oid] = self._shape(relation, tuple(seen)) if relation is not None and selected else None
        self._learn(oid, shape)

    def _learn(self, oid: int, shape: Shape | None) -> None:
        """Inserts, and updates that show no old row."""
        for kind, op in ((b"I", b"c"), (b"U", b"u")):
            start = kind + oid.to_bytes(4) + b"N"
            self._runs.pop(start, None)
            if COMPILED and shape is not None and shape.whole:
                count = len(shape.columns).to_bytes(2)
                self._runs[start] = pgoutput_run(op, shape.table, start + count, shape.ways)

    def _shape(self, relation: Relation, seen: Seen) -> Shape:
        table = self._catalog.table_of(relation, seen)
        places = {column.name: i for i, column in enumerate(table.columns)}
        codecs = [places.get(name, -1) for name, _ in seen]
        return Shape(table, tuple((at, table.columns[at].codec) for at in codecs))

    def _insert(self, data: bytes) -> Row | None:
        shape = self._of(data, 1)
        if shape is None:
            return None
        _expect(data, 5, _NEW)
        new, at = read_tuple(data, 6, shape)
        _whole(data, at)
        return Row("c", shape.table, new, None)

    def _update(self, data: bytes) -> Row | None:
        shape = self._of(data, 1)
        if shape is None:
            return None
        at, old = 5, None
        if data[at] in (_OLD, _KEY):
            kind = data[at]
            old, at = read_tuple(data, at + 1, shape)
            if kind == _KEY:
                forget_unknown(old, shape.table)
        _expect(data, at, _NEW)
        new, at = read_tuple(data, at + 1, shape)
        _whole(data, at)
        if old is None:
            return Row("u", shape.table, new, None)
        for i, fragment in enumerate(new):
            if fragment is UNCHANGED:
                new[i] = old[i]
        changed = any(new[i] != old[i] for i in shape.table.key)
        return Row("u", shape.table, new, old if changed else None)

    def _delete(self, data: bytes) -> Row | None:
        shape = self._of(data, 1)
        if shape is None:
            return None
        kind = data[5]
        if kind not in (_OLD, _KEY):
            raise DecodeError("pgoutput: no old row at byte 5", hint=HINT)
        old, at = read_tuple(data, 6, shape)
        _whole(data, at)
        if kind == _KEY:
            forget_unknown(old, shape.table)
        return Row("d", shape.table, None, old)

    def _truncate(self, data: bytes) -> Truncate | None:
        count, _ = _TRUNCATE.unpack_from(data, 1)
        start = 1 + _TRUNCATE.size
        _whole(data, start + 4 * count)
        relations = [self._catalog.relation(INT32(data, start + 4 * i)[0]) for i in range(count)]
        selected = [relation for relation in relations if relation is not None and self._catalog.selects(relation)]
        return Truncate([self._catalog.present(root) for root in folded(self._catalog, selected)]) if selected else None

    def _message(self, data: bytes) -> Message | None:
        flags, _ = _MESSAGE.unpack_from(data, 1)
        prefix, at = _cstring(data, 1 + _MESSAGE.size)
        length = INT32(data, at)[0]
        _whole(data, at + 4 + length)
        if prefix != MESSAGE_PREFIX:
            return None
        return Message(prefix, data[at + 4 :], bool(flags & 1))

    def _of(self, data: bytes, at: int) -> Shape | None:
        oid = INT32(data, at)[0]
        try:
            return self._shapes[oid]
        except KeyError as error:
            raise DecodeError(f"pgoutput: a row of a relation not announced, at byte {at}", hint=HINT) from error


def _nothing(_: bytes) -> None:
    """Type and Origin messages: the catalog knows the types, and origins are filtered by the publication's reader."""


def _cstring(data: bytes, at: int) -> tuple[str, int]:
    end = data.find(b"\0", at)
    if end < 0:
        raise DecodeError(f"pgoutput: a name at byte {at} has no end", hint=HINT)
    try:
        return data[at:end].decode(), end + 1
    except UnicodeDecodeError as error:
        raise DecodeError(f"pgoutput: a name at byte {at} is not UTF-8", hint=HINT) from error


def _expect(data: bytes, at: int, kind: int) -> None:
    if data[at] != kind:
        raise DecodeError(f"pgoutput: no new row at byte {at}", hint=HINT)


def _whole(data: bytes, at: int) -> None:
    if at != len(data):
        raise DecodeError(f"pgoutput: the message should end at byte {at} but has {len(data)}", hint=HINT)
