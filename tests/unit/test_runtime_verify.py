"""Verify: each kind of difference is named, and rows on their way are not taken for differences."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from consumers.verify import compare
from tests.memory_store import Memory, MemoryStore

TABLE = ("public", "memories")
Rows = dict[bytes, bytes]


class Table:
    """A table at its source; `on_look` runs before each close look."""

    def __init__(self, rows: Rows, on_look: Callable[[], None] = lambda: None) -> None:
        self.held = rows
        self._on_look = on_look

    async def position(self) -> bytes:
        return b"0" * 32

    async def rows(self) -> AsyncIterator[Sequence[tuple[bytes, bytes]]]:
        yield list(self.held.items())

    async def look(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        self._on_look()
        return [self.held.get(key) for key in keys]


@pytest.fixture
def memory() -> Memory:
    found = Memory()
    found.live.rows[TABLE] = {b"%d" % n: (b"0" * 32, b"{}", b"row %d" % n) for n in range(10)}
    return found


def source(on_look: Callable[[], None] = lambda: None) -> Table:
    return Table({b"%d" % n: b"row %d" % n for n in range(10)}, on_look)


def matching(memory: Memory) -> Callable[[Sequence[tuple[bytes, bytes]]], object]:
    async def matches(rows: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        held = memory.live.rows[TABLE]
        return [key in held and held[key][2] == row for key, row in rows]

    return matches


async def at_once(position: bytes) -> None:
    return None


async def test_equal(memory: Memory) -> None:
    found = await compare(MemoryStore(memory), source(), TABLE, at_once, matches=matching(memory))  # type: ignore[arg-type]
    assert found.equal
    assert found.rows == 10


async def test_each_kind_is_named(memory: Memory) -> None:
    held = memory.live.rows[TABLE]
    del held[b"1"]
    held[b"2"] = (b"0" * 32, b"{}", b"something else")
    held[b"77"] = (b"0" * 32, b"{}", b"not at the source")
    held[b"3"] = (b"0" * 32, b"{}", None)  # deleted here only
    found = await compare(MemoryStore(memory), source(), TABLE, at_once, matches=matching(memory))  # type: ignore[arg-type]
    assert (sorted(found.missing), found.stale, found.extra, found.unsettled) == ([b"1", b"3"], [b"2"], [b"77"], [])
    assert not found.equal


async def test_what_arrives_in_time_is_no_difference(memory: Memory) -> None:
    row = memory.live.rows[TABLE].pop(b"1")
    passes = 0

    async def caught_up(position: bytes) -> None:
        nonlocal passes
        passes += 1
        if passes == 2:  # at the close look
            memory.live.rows[TABLE][b"1"] = row

    assert (await compare(MemoryStore(memory), source(), TABLE, caught_up, matches=matching(memory))).equal  # type: ignore[arg-type]


async def test_a_row_that_changes_under_our_eyes_is_unsettled(memory: Memory) -> None:
    table = source()
    number = 0

    def change() -> None:
        nonlocal number
        number += 1
        table.held[b"1"] = b"version %d" % number

    table._on_look = change
    del memory.live.rows[TABLE][b"1"]
    found = await compare(MemoryStore(memory), table, TABLE, at_once, matches=matching(memory))  # type: ignore[arg-type]
    assert (found.unsettled, found.missing) == ([b"1"], [])
    assert not found.equal
