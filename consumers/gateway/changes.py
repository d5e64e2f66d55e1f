"""What a client sees of a record in a topic: one change, as JSON in a server-sent event.

Columns are as they travel: what is dropped, hashed or redacted on the way is so here. Vectors are left out unless asked
for. A tombstone that comes alone (compaction took the delete before it) is told as the delete it stands for.
(HTML Living Standard, "Server-sent events")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from cdc.envelope import MARKER_KEYS, TRUNCATE_KEY, decode_event
from cdc.errors import MALFORMED, DecodeError
from consumers.store import Record

_COLUMNS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LINES = bytes.maketrans(b"\r\n", b"  ")  # in JSON they stand between tokens only; an event they would cut


class Change(NamedTuple):
    """`position` is the wire form; `key`, `row` and `vector` are JSON; `ts_us` when it committed (µs since 1970), None
    for a tombstone alone; `marker` for op t: every row of the table below the position `below` is gone."""

    position: bytes
    table: str
    op: str
    key: bytes
    vector: bytes
    row: bytes | None = None
    ts_us: int | None = None
    marker: str | None = None
    below: str | None = None

    @property
    def nbytes(self) -> int:
        """What it holds of memory, about."""
        return len(self.key) + len(self.row or b"") + len(self.vector) + 200  # the tuple and its small parts


class Wanted(NamedTuple):
    """One client's choice. `tables`: only these; `users`: column of the user by table, `user` the wanted value;
    `hidden`: vector column by table."""

    tables: frozenset[str] | None
    user: str | None
    users: Mapping[str, str]
    hidden: Mapping[str, str]


def change_of(table: str, record: Record) -> Change:
    """Raises DecodeError for a value that is none of ours."""
    position, key = record.position, record.key
    if record.value is None:
        return Change(position, table, "d", key, record.vector)
    event = decode_event(record.value)
    if key in MARKER_KEYS:
        kind = "truncate" if key == TRUNCATE_KEY else "sweep"
        below = event.source.below
        return Change(position, table, event.op, b"{}", record.vector, None, event.source.ts_us, kind, below)
    after = bytes(event.after)
    row = None if after == b"null" else after
    return Change(position, table, event.op, key, record.vector, row, event.source.ts_us)


def shown(change: Change, wanted: Wanted) -> bytes | None:
    """The event's bytes, None for a change that was not asked for. Deletes and markers name no user: they are for
    all. Raises DecodeError."""
    if wanted.tables is not None and change.table not in wanted.tables:
        return None
    column = wanted.users.get(change.table)
    if wanted.user is not None and column is None:
        return None
    hidden = wanted.hidden.get(change.table)
    row: dict[str, msgspec.Raw] | bytes | None = change.row
    if change.row is not None and (hidden or wanted.user is not None):
        row = columns = _columns(change.row)
        if wanted.user is not None and _text(columns.get(column or "")) != wanted.user:
            return None
        columns.pop(hidden or "", None)
    return frame(b"change", _document(change, row), change.position)


def frame(event: bytes, data: bytes, position: bytes | None) -> bytes:
    """One event; a client that comes back names the last `position` it got."""
    name = b"id: %s\n" % position if position else b""
    return b"%sevent: %s\ndata: %s\n\n" % (name, event, data.translate(_LINES))


def _document(change: Change, row: dict[str, msgspec.Raw] | bytes | None) -> bytes:
    shown: dict[str, Any] = {
        "position": change.position.decode(),
        "table": change.table,
        "op": change.op,
        "key": msgspec.Raw(change.key),
        "version": msgspec.Raw(change.vector),
        "row": msgspec.Raw(row) if isinstance(row, bytes) else row,
        "ts_us": change.ts_us,
        "marker": change.marker,
        "below": change.below,
    }
    return msgspec.json.encode({name: value for name, value in shown.items() if value is not None})


def _columns(row: bytes) -> dict[str, msgspec.Raw]:
    try:
        return _COLUMNS.decode(row)
    except MALFORMED as error:
        raise DecodeError("a row is no JSON object", hint="was this topic written by another program?") from error


def _text(value: msgspec.Raw | None) -> str | None:
    """A column's value as it stands in a URL."""
    if value is None or bytes(value) == b"null":
        return None
    raw = bytes(value)
    return str(msgspec.json.decode(raw)) if raw[:1] == b'"' else raw.decode()
