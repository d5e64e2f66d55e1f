"""Where a snapshot chunk stands among the stream: keys touched between low and high, and the race before low."""

from __future__ import annotations

import pytest

from cdc.source import window
from cdc.source.visibility import Shot
from cdc.source.window import Windows

NAME = ("public", "memories")
OTHER = ("public", "other")


def test_keys_touched_between_low_and_high_are_newer_than_the_chunk() -> None:
    windows = Windows()
    windows.touch(NAME, b"before")
    windows.low("a", NAME)
    windows.touch(NAME, b"1")
    windows.low("b", NAME)
    windows.touch(NAME, b"2")
    windows.touch(OTHER, b"3")
    first = windows.high("a")
    windows.touch(NAME, b"4")
    second = windows.high("b")
    assert first is not None
    assert second is not None
    assert (first.keys, second.keys) == ({b"1", b"2"}, {b"2", b"4"})
    assert not windows.by_table


def test_a_truncate_voids_the_windows_of_its_table() -> None:
    windows = Windows()
    windows.low("a", NAME)
    windows.low("b", OTHER)
    windows.truncate(NAME)
    truncated, other = windows.high("a"), windows.high("b")
    assert truncated is not None
    assert other is not None
    assert truncated.truncated
    assert not other.truncated


def test_a_window_of_an_earlier_run_is_unknown() -> None:
    assert Windows().high("never opened") is None


def test_delivered_before_low_but_running_in_the_snapshot_is_a_race() -> None:
    """The commit record is written before a transaction leaves the list of running ones: its rows are in the stream
    already, yet the chunk's snapshot does not see them, and no window tells its keys."""
    windows = Windows()
    windows.delivered(100)
    windows.low("a", NAME)
    windows.delivered(101)
    opened = windows.high("a")
    assert opened is not None
    assert windows.raced(opened, Shot(1000, frozenset({100})))
    assert windows.raced(opened, Shot(1000, frozenset({99, 100, 101})))
    assert not windows.raced(opened, Shot(1000, frozenset({101})))  # delivered after low: its keys are in the window
    assert not windows.raced(opened, Shot(1000, frozenset({99})))  # not delivered yet: it comes after the chunk
    assert not windows.raced(opened, Shot(1000, frozenset()))


def test_delivered_before_low_and_beyond_the_snapshot_is_a_race() -> None:
    """The newest transactions are at or above the snapshot's xmax: they are not listed, and not seen either."""
    windows = Windows()
    windows.delivered(0xFFFF_FFFF)
    windows.delivered(102)
    windows.low("a", NAME)
    windows.delivered(103)
    opened = windows.high("a")
    assert opened is not None
    assert windows.raced(opened, Shot(102, frozenset()))
    assert not windows.raced(opened, Shot(103, frozenset()))  # 103 came after low


def test_only_lately_delivered_transactions_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "REMEMBERED", 3)
    windows = Windows()
    for xid in (1, 2, 3, 4):
        windows.delivered(xid)
    windows.low("a", NAME)
    opened = windows.high("a")
    assert opened is not None
    assert not windows.raced(opened, Shot(1000, frozenset({1})))
    assert windows.raced(opened, Shot(1000, frozenset({2})))


def test_an_xid_that_comes_round_again_counts_as_its_last_delivery() -> None:
    windows = Windows()
    windows.delivered(7)
    windows.low("a", NAME)
    windows.delivered(7)
    opened = windows.high("a")
    assert opened is not None
    assert not windows.raced(opened, Shot(1000, frozenset({7})))
