"""A change as its event, and the newest ones held for all clients: without a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from cdc.envelope import SWEEP_KEY
from cdc.errors import DecodeError
from cdc.position import Position
from consumers.gateway.changes import Change, Wanted, change_of, frame, shown
from consumers.gateway.ring import Ring
from consumers.store import Record

TABLE = "public.memories"
ALL = Wanted(None, None, {TABLE: "user_id"}, {TABLE: "embedding"})


def at(number: int) -> bytes:
    return Position(1, number, 1).encode()


def record(after: bytes | None, op: str = "c", key: bytes = b'{"id":7}', **source: Any) -> Record:
    """As the reader writes it; `after` is raw JSON."""
    made = {"name": "m", "db": "d", "schema": "public", "table": "memories", "ts_us": 5, "epoch": 1, "lsn": 9,
            "ordinal": 1, **source}  # fmt: skip
    value = b'{"op":"%s","source":%s,"ts_ms":1,"after":%s}' % (op.encode(), json.dumps(made).encode(), after or b"null")
    return Record(key, value, at(9), b'{"m":9}', 0, 0)


def event(found: bytes | None) -> Any:
    """The data of a frame that is whole."""
    assert found is not None
    name, kind, data, *rest = found.split(b"\n")
    assert (name, kind, rest) == (b"id: " + at(9), b"event: change", [b"", b""])
    return json.loads(data.removeprefix(b"data: "))


def test_line_ends_within_json_do_not_end_the_event() -> None:
    row = b'{"id": 7,\r\n "document": {"a":\n 1}, "text": "one\\ntwo"}'
    assert event(shown(change_of(TABLE, record(row)), ALL))["row"] == {
        "id": 7, "document": {"a": 1}, "text": "one\ntwo",
    }  # fmt: skip


def test_the_vector_column_is_left_out_unless_asked_for() -> None:
    change = change_of(TABLE, record(b'{"id":7,"embedding":"f32:AACAPw==","note":"f32:AACAPw=="}'))
    assert event(shown(change, ALL))["row"] == {"id": 7, "note": "f32:AACAPw=="}
    assert "embedding" in event(shown(change, ALL._replace(hidden={})))["row"]


@pytest.mark.parametrize(("user", "seen"), [('"7"', True), ("7", True), ('"8"', False), ("null", False)])
def test_users_are_compared_as_text(user: str, seen: bool) -> None:
    change = change_of(TABLE, record(b'{"id":1,"user_id":%s}' % user.encode()))
    assert (shown(change, ALL._replace(user="7")) is not None) is seen
    assert shown(change, ALL._replace(user="7", users={})) is None  # a table without users is nobody's


def test_a_delete_and_a_marker() -> None:
    assert event(shown(change_of(TABLE, record(None, "d")), ALL)) == {
        "position": at(9).decode(), "table": TABLE, "op": "d", "key": {"id": 7}, "version": {"m": 9}, "ts_us": 5,
    }  # fmt: skip
    marker = event(shown(change_of(TABLE, record(None, "t", SWEEP_KEY, below=at(8).decode())), ALL))
    assert (marker["op"], marker["marker"], marker["below"]) == ("t", "sweep", at(8).decode())
    assert shown(change_of("public.other", record(None, "d")), ALL._replace(tables=frozenset({TABLE}))) is None


def test_what_is_none_of_ours_is_no_event() -> None:
    with pytest.raises(DecodeError):
        change_of(TABLE, Record(b"{}", b"not json", at(1), b"{}", 0, 0))
    with pytest.raises(DecodeError):
        shown(change_of(TABLE, record(b"[1]")), ALL)


def test_an_event_without_a_position_has_no_id() -> None:
    assert frame(b"end", b"{}", None) == b"event: end\ndata: {}\n\n"


def changes(numbers: Sequence[int]) -> list[Change]:
    return [Change(at(number), TABLE, "c", b"{}", b"{}", b"x" * 800) for number in numbers]


def test_the_oldest_go_and_who_stood_there_is_told() -> None:
    ring = Ring(at(0), changes=100)
    ring.add(changes(range(1, 101)))
    assert [change.position for change in ring.since(at(0), 3) or ()] == [at(1), at(2), at(3)]
    ring.add(changes([101]))
    assert ring.since(at(0), 3) is None
    assert ring.since(ring.floor, 1) == changes([27])  # a quarter is let go at once
    assert ring.since(at(101), 3) == []
    assert ring.top == at(101)


def test_bytes_bound_it_too() -> None:
    ring = Ring(at(0), nbytes=10_000)
    ring.add(changes(range(1, 50)))
    held = ring.since(ring.floor, 1000)
    assert held is not None
    assert 0 < sum(change.nbytes for change in held) <= 10_000


async def test_waiting_for_what_comes() -> None:
    ring = Ring(at(5))
    await ring.reached(at(5))
    waiting = asyncio.ensure_future(ring.beyond(at(5)))
    await asyncio.sleep(0)
    assert not waiting.done()
    ring.seal(at(6), {})  # no change, and yet further
    await waiting
    assert (ring.top, ring.since(at(5), 10)) == (at(6), [])
    ring.close("over")
    await ring.beyond(at(7))
    assert ring.closed == "over"
