"""The model's PostgreSQL: transactions in commit order, the rows they leave, what the topics have to hold of them.

It is the oracle, and knows nothing of chunks, offsets or versions: a dictionary a table, and when each key changed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from cdc.position import Position
from cdc.source.events import UNCHANGED, Begin, Column, Commit, Event, Fragment, Message, Row, Table, Truncate
from cdc.source.visibility import Shot

KEYS = 12  # few, so that changes meet
PREFIX = "m"
COLUMNS = (Column("id", 23, "integer", bytes), Column("v", 1021, "real[]", bytes))
ROW = b'"id":%b,"v":%b'
KEY = b'{"id":%b}'
NAMES = (("public", "memories"), ("public", "notes"))
TABLES = {name: Table(*name, COLUMNS, (0,), False, ROW, KEY) for name in NAMES}
TOPICS = {name: f"{PREFIX}.{name[0]}.{name[1]}" for name in NAMES}

Name = tuple[str, str]
Rows = dict[int, int]


class Change(NamedTuple):
    """What became of a key: its number then, None when it is gone."""

    position: bytes
    number: int | None


class Tx(NamedTuple):
    """A committed transaction as the stream brings it."""

    lsn: int
    end: int
    events: list[Event]


def fragments(key: int, number: int) -> list[Fragment]:
    """A row: every number is another vector, exact in float32."""
    return [b"%d" % key, b"[%d,1]" % number]


def key_bytes(key: int) -> bytes:
    """The topic's key."""
    return b'{"id":%d}' % key


class Source:
    """`log` is the WAL. `expected`: per topic, what a reader has to write, `(position, key or None, op)`."""

    def __init__(self) -> None:
        self.rows: dict[Name, Rows] = {name: {} for name in NAMES}
        self.log: list[Tx] = []
        self.expected: dict[str, list[tuple[bytes, bytes | None, str]]] = {topic: [] for topic in TOPICS.values()}
        self.history: dict[Name, dict[int, list[Change]]] = {name: {} for name in NAMES}
        self.epoch = 1
        self.lsn = 1000
        self.hidden: tuple[int, dict[Name, Rows]] | None = None  # xid in the WAL but not visible, rows without it
        self._number = self._ordinal = 0

    @property
    def end(self) -> int:
        """The WAL's end."""
        return self.log[-1].end if self.log else self.lsn

    def visible(self, name: Name) -> tuple[Rows, Shot]:
        """What a snapshot taken now sees; xids are LSNs here, so that a hidden one is always below xmax."""
        xmax = self.end + 1
        if self.hidden is None:
            return self.rows[name], Shot(xmax, frozenset())
        xid, before = self.hidden
        return before[name], Shot(xmax, frozenset((xid,)))

    def message(self, content: bytes) -> None:
        """A logical message in a transaction of its own."""
        self._append([Message("memory-cdc", content, True)])

    def commit(self, orders: Iterator[tuple[int, Name, int, int]], *, hide: bool) -> bool:
        """A transaction of `(kind, table, key, other key)`; those that mean nothing now are passed over. `hide`: its
        commit record is written, but for a while no snapshot sees it."""
        self.hidden = None  # whoever meets its rows waits until it has ended
        before = {name: dict(rows) for name, rows in self.rows.items()} if hide else {}
        self.lsn += 16
        events: list[Event] = []
        for kind, name, key, other in orders:
            self._change(events, kind, name, key, other)
        if not events:
            return False
        self._append(events)
        if hide and not any(isinstance(event, Truncate) for event in events):  # a truncation locks snapshots out
            self.hidden = (self.lsn, before)
        return True

    def _append(self, events: list[Event]) -> None:
        if not self.log or self.lsn <= self.log[-1].lsn:
            self.lsn = self.end + 8
        lsn, end = self.lsn, self.lsn + 8
        self.log.append(Tx(lsn, end, [Begin(lsn, lsn, lsn * 1000), *events, Commit(lsn, end)]))
        self._ordinal = 0

    def _change(self, events: list[Event], kind: int, name: Name, key: int, other: int) -> None:
        rows, table = self.rows[name], TABLES[name]
        self._number += 1
        number = self._number
        if kind == 0 and rows:  # TRUNCATE
            events.append(Truncate([table]))
            position = self._expect(name, None, "t")
            for gone in rows:
                self._note(name, gone, position, None)
            rows.clear()
        elif key not in rows:
            events.append(Row("c", table, fragments(key, number), None))
            self._put(name, key, number, "c")
        elif kind <= 3:
            events.append(Row("d", table, None, [b"%d" % key, UNCHANGED]))
            self._gone(name, key)
        elif kind <= 5 and other not in rows:  # the key changes: a delete and a create
            events.append(Row("u", table, fragments(other, number), [b"%d" % key, UNCHANGED]))
            self._gone(name, key)
            self._put(name, other, number, "c")
        else:
            events.append(Row("u", table, fragments(key, number), None))
            self._put(name, key, number, "u")

    def _put(self, name: Name, key: int, number: int, op: str) -> None:
        self.rows[name][key] = number
        self._note(name, key, self._expect(name, key, op), number)

    def _gone(self, name: Name, key: int) -> None:
        del self.rows[name][key]
        self._note(name, key, self._expect(name, key, "d"), None)

    def _expect(self, name: Name, key: int | None, op: str) -> bytes:
        self._ordinal += 1
        position = Position(self.epoch, self.lsn, self._ordinal).encode()
        self.expected[TOPICS[name]].append((position, None if key is None else key_bytes(key), op))
        return position

    def _note(self, name: Name, key: int, position: bytes, number: int | None) -> None:
        self.history[name].setdefault(key, []).append(Change(position, number))

    def last(self, name: Name, key: int, until: bytes) -> tuple[Change | None, bool]:
        """The last change of a key at or before a position, and whether it is gone at some time after."""
        changes = self.history[name].get(key, [])
        at = bisect_right(changes, until, key=lambda change: change.position)
        return (changes[at - 1] if at else None), any(change.number is None for change in changes[at:])
