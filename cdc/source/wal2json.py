"""wal2json, format-version 2: one JSON object a payload → one event.

Values whose wire form is wal2json's own JSON are spliced as they are; the others are turned into PostgreSQL's text
and go through the column's codec. wal2json omits unchanged TOAST columns of updates: they come from `identity` where
it has them, else they are UNCHANGED. It shows NaN and ±Infinity as null: UNKNOWN. Types are asked for by oid, not by
name, since 2.5 writes invalid JSON for types in a schema whose name has to be quoted.
Field meanings, verified on 2.5: B and C carry the commit record's LSN in `lsn` and the one after it in `nextlsn`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from cdc.errors import DecodeError, PreconditionError
from cdc.position import parse_lsn
from cdc.source.catalog import Catalog
from cdc.source.events import MESSAGE_PREFIX, UNCHANGED, Begin, Commit, Event, Fragment, Message, Row, Run, Truncate
from cdc.source.selection import TablesChanged
from cdc.source.truncation import Truncations
from cdc.source.wal2json_inserts import Inserts
from cdc.source.wal2json_rows import Rows
from cdc.source.wal2json_runs import Runs

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_ACTION: Final = len(b'{"action":"')  # wal2json writes the action first
_ESCAPED: Final = frozenset(" '\\,.*")  # what wal2json wants escaped in table names
_HINT: Final = "is the slot's plugin wal2json 2.5 or newer, and the database encoded in UTF8?"


class _Item(msgspec.Struct, gc=False):
    name: str
    typeoid: int
    value: msgspec.Raw


class _Change(msgspec.Struct, gc=False):
    schema: str
    table: str
    columns: list[_Item] = []
    identity: list[_Item] = []


class _Truncation(msgspec.Struct, gc=False):
    schema: str
    table: str
    lsn: str


class _Boundary(msgspec.Struct, gc=False):
    xid: int
    timestamp: str
    lsn: str
    nextlsn: str


class _Emitted(msgspec.Struct, gc=False):
    prefix: str
    content: str
    transactional: bool


_change = msgspec.json.Decoder(_Change).decode
_truncation = msgspec.json.Decoder(_Truncation).decode
_boundary = msgspec.json.Decoder(_Boundary).decode
_emitted = msgspec.json.Decoder(_Emitted).decode


class Wal2jsonDecoder:
    """The Decoder of a slot with wal2json. Asks the catalog about tables and columns it does not know."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._generation = catalog.generation
        self._rows: dict[tuple[str, str], Rows | None] = {}  # None: not selected, as of the catalog's horizon
        self._inserts = Inserts()
        self._runs = Runs()
        self._truncations = Truncations()
        self._filtered = False

    def options(self) -> dict[str, str]:
        """Plugin options; wal2json filters tables itself only where no new partition or match can appear."""
        encoding = self._catalog.server_encoding()
        if encoding != "UTF8":
            raise PreconditionError(
                f"the database is encoded in {encoding}, and wal2json writes that as it is",
                hint='set [postgres] plugin = "pgoutput", or move to a database encoded in UTF8',
            )
        options = {
            "format-version": "2",
            "include-xids": "true",
            "include-lsn": "true",
            "include-timestamp": "true",
            "include-transaction": "true",
            "include-types": "false",
            "include-type-oids": "true",
            "actions": "insert,update,delete,truncate",
            "add-msg-prefixes": MESSAGE_PREFIX,
        }
        self._filtered = self._may_filter()
        if self._filtered:
            options["add-tables"] = ",".join(_escape(pattern) for pattern in self._catalog.config.postgres.tables)
        return options

    def overtaken(self, lsn: int) -> bool:
        """Its rows do not show all DDL."""
        return lsn > self._catalog.horizon

    def run(self, payload: bytes) -> Run | None:
        """See `Decoder`."""
        return self._runs.find(payload)

    def decode(self, payload: bytes) -> Event | None:
        """One payload; see `Decoder`. Raises DecodeError, and PreconditionError for what no event can say."""
        try:
            action = payload[_ACTION] if len(payload) > _ACTION else 0
            if payload.__class__ is not bytes:  # a memoryview
                payload = bytes(payload)
            if action == 73:  # I
                return self._inserts.decode(payload) or self._insert(payload, _change(payload))
            if action == 85:  # U
                return self._update(payload, _change(payload))
            if action == 68:  # D
                return self._delete(_change(payload))
            return self._other(action, payload)
        except DecodeError as error:
            raise error if error.message.startswith("wal2json") else _of_plugin(error) from error
        except msgspec.DecodeError as error:  # msgspec's message names the byte
            raise DecodeError(f"wal2json: {error}", hint=_HINT) from error
        except UnicodeDecodeError as error:
            raise DecodeError(f"wal2json: not UTF-8 at byte {error.start}", hint=_HINT) from error
        except RecursionError as error:  # the plugin nests three levels
            raise DecodeError("wal2json: nested deeper than the plugin writes", hint=_HINT) from error

    def _insert(self, payload: bytes, change: _Change) -> Row | None:
        rows = self._of(change)
        if rows is None:
            return None
        shape = rows.insert(change.columns)
        row = Row("c", shape.table, shape.decode(change.columns), None)
        self._inserts.learn(payload, change.columns, shape)
        self._runs.learn(payload, change.columns, shape)
        return row

    def _update(self, payload: bytes, change: _Change) -> Row | None:
        rows = self._of(change)
        if rows is None:
            return None
        columns, identity = change.columns, change.identity
        shape, before = rows.update(columns, identity)
        new = shape.decode(columns)
        changed = shape.key_changed(columns, identity, before)
        if not changed and shape.whole:
            self._runs.learn(payload, columns, shape, identity, before)
            return Row("u", shape.table, new, None)
        old = before.decode(identity)
        if not shape.whole:
            _merge(new, old)
        return Row("u", shape.table, new, old if changed else None)

    def _delete(self, change: _Change) -> Row | None:
        rows = self._of(change)
        if rows is None:
            return None
        shape = rows.delete(change.identity)
        shape.require_key()
        return Row("d", shape.table, None, shape.decode(change.identity))

    def _other(self, action: int, payload: bytes) -> Event | None:
        if action == 66:  # B
            return self._begin(_boundary(payload))
        if action == 67:  # C
            end = _boundary(payload)
            self._truncations.finish(self._catalog)
            return Commit(parse_lsn(end.lsn), parse_lsn(end.nextlsn))
        if action == 84:  # T
            return self._truncate(_truncation(payload))
        if action == 77:  # M
            emitted = _emitted(payload)
            if emitted.prefix != MESSAGE_PREFIX:
                return None
            return Message(emitted.prefix, emitted.content.encode(), emitted.transactional)
        raise DecodeError(f"wal2json: unknown action at byte {_ACTION}", hint=_HINT)

    def _begin(self, begin: _Boundary) -> Begin:
        lsn = parse_lsn(begin.lsn)
        self._catalog.advance(lsn)
        if self._generation != self._catalog.generation:
            self._generation = self._catalog.generation
            self._rows.clear()
            self._inserts.clear()
            self._runs.clear()
            if self._filtered and not self._may_filter():
                raise TablesChanged(
                    "a table that wal2json filters for was partitioned or dropped", hint="restart the reader"
                )
        elif None in self._rows.values():  # what is not selected is looked at again
            self._rows = {name: rows for name, rows in self._rows.items() if rows is not None}
        return Begin(begin.xid, lsn, _microseconds(begin.timestamp))

    def _truncate(self, change: _Truncation) -> Truncate | None:
        relation = self._catalog.relation_named(change.schema, change.table)
        if relation is None or not self._catalog.selects(relation):
            return None
        root = self._catalog.root(relation)
        empty = self._truncations.empties(relation, root, change.lsn)
        return Truncate([self._catalog.present(root)]) if empty else None

    def _of(self, change: _Change) -> Rows | None:
        name = (change.schema, change.table)
        try:
            return self._rows[name]
        except KeyError:
            relation = self._catalog.relation_named(*name)
            selected = relation is not None and self._catalog.selects(relation)
            rows = Rows(self._catalog, relation) if relation is not None and selected else None
            self._rows[name] = rows
            return rows

    def _may_filter(self) -> bool:
        names = [pattern.split(".") for pattern in self._catalog.config.postgres.tables]
        if any(len(name) != 2 or set("*?[") & set("".join(name)) for name in names):
            return False
        found = [self._catalog.relation_named(schema, table) for schema, table in names]
        return all(relation is not None and not relation.partitioned for relation in found)


def _of_plugin(error: DecodeError) -> DecodeError:
    return DecodeError(f"wal2json: {error.message}", hint=error.hint)


def _merge(new: list[Fragment], old: Sequence[Fragment]) -> None:
    for i, fragment in enumerate(new):
        if fragment is UNCHANGED:
            new[i] = old[i]


def _escape(name: str) -> str:
    """`schema.table` with the special characters of both parts escaped as wal2json's README tells."""
    schema, table = name.split(".")
    return ".".join("".join("\\" + c if c in _ESCAPED else c for c in part) for part in (schema, table))


def _microseconds(text: str) -> int:
    """`2026-11-20 21:35:08.94+00` → microseconds since the Unix epoch, exactly."""
    try:
        return (datetime.fromisoformat(text) - _EPOCH) // _MICROSECOND
    except (ValueError, TypeError) as error:
        raise DecodeError("wal2json: a timestamp does not parse", hint=_HINT) from error
