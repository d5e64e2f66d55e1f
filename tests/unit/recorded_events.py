"""What the recorded workload means, whichever plugin told it (frames/record.py)."""

from __future__ import annotations

from cdc.source.events import NULL, UNCHANGED, Begin, Commit, Event, Fragment, Message, Row, Truncate

LONG = b'"' + b"long " * 500 + b'"'
QUOTED = '"q\\"\\\\ \\n é"'.encode()
FIRST = [b"1", LONG, b"0.5", b'"1.50"', b'"AP8="', b'["a",null,"b,c"]', b"true"]


def meaning(nan: Fragment, infinity: Fragment) -> list[tuple[object, ...]]:
    """Each event but the boundaries, `nan` and `infinity` being what the plugin makes of them."""
    second = [b"2", QUOTED, nan, infinity, NULL, b"[]", b"false"]
    moved = [b"3", *second[1:]]
    unknown = [UNCHANGED] * 6
    return [
        ("c", "notes", FIRST, None),
        ("c", "notes", second, None),
        ("u", "notes", [b"1", UNCHANGED, *FIRST[2:6], b"false"], None),
        ("u", "notes", moved, [b"2", *unknown]),
        ("d", "notes", None, [b"3", *unknown]),
        ("memory-cdc", b'{"t": 1}', True),
        ("c", "parts", [b"1", b'"a"'], None),
        ("d", "parts", None, [b"1", b'"a"']),
        ("c", "parts", [b"1", b'"b"'], None),
        ("t", "notes"),
        ("t", "parts"),
    ]


def told(events: list[Event]) -> list[tuple[object, ...]]:
    """The same form of decoded events."""
    lines: list[tuple[object, ...]] = []
    for event in events:
        if isinstance(event, Row):
            lines.append((event.op, event.table.name, event.new, event.old))
        elif isinstance(event, Truncate):
            lines.extend(("t", table.name) for table in event.tables)
        elif isinstance(event, Message):
            lines.append(tuple(event))
    return lines


def check_boundaries(events: list[Event]) -> None:
    """Transactions are closed before the next begins, in the order of their commit."""
    boundaries = [event for event in events if isinstance(event, Begin | Commit)]
    begins, commits = boundaries[::2], boundaries[1::2]
    assert all(isinstance(begin, Begin) for begin in begins)
    assert [begin.commit_lsn for begin in begins] == [commit.commit_lsn for commit in commits]
    assert sorted(begin.commit_lsn for begin in begins) == [begin.commit_lsn for begin in begins]
    for commit in commits:
        assert isinstance(commit, Commit)
        assert commit.end_lsn > commit.commit_lsn
