"""Verify: each kind of difference is named, and rows on their way are not taken for differences."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Collection, Sequence

import pytest

from consumers.verify import Written, compare
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


class Texts:
    """Content: the stored text is the row."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._seen: set[bytes] = set()

    async def matches(self, rows: Sequence[tuple[bytes, bytes]]) -> list[bool]:
        self._seen.update(key for key, _row in rows)
        held = self._memory.live.rows[TABLE]
        return [key in held and held[key][2] == row for key, row in rows]

    async def others(self) -> AsyncIterator[bytes]:
        for key, row in self._memory.live.rows[TABLE].items():
            if key not in self._seen and row[2] is not None:
                yield key


async def at_once(position: bytes) -> None:
    return None


async def test_equal(memory: Memory) -> None:
    found = await compare(MemoryStore(memory), source(), TABLE, at_once, content=Texts(memory))
    assert found.equal
    assert found.rows == 10


async def written(keys: Collection[bytes]) -> dict[bytes, Written[bytes]]:
    """The topics hold each row as it is, at the position that the store has."""
    return {key: Written(b"0" * 32, b"row %b" % key) for key in keys}


async def test_each_kind_is_named(memory: Memory) -> None:
    held = memory.live.rows[TABLE]
    del held[b"1"]
    held[b"2"] = (b"0" * 32, b"{}", b"something else")
    held[b"77"] = (b"0" * 32, b"{}", b"not at the source")
    held[b"3"] = (b"0" * 32, b"{}", None)  # deleted here only
    held[b"4"] = (b"/" * 32, b"{}", b"what it was")  # '/' sorts before '0'
    found = await compare(MemoryStore(memory), source(), TABLE, at_once, content=Texts(memory), newest=written)
    assert (sorted(found.missing), found.extra) == ([b"1", b"3"], [b"77"])
    assert (found.stale, found.different, found.unsettled) == ([b"4"], [b"2"], [])
    assert not found.equal


async def test_what_the_topics_say_too_is_stale(memory: Memory) -> None:
    """The store holds what it was given: it is the topics that are behind."""
    memory.live.rows[TABLE][b"2"] = (b"0" * 32, b"{}", b"before")

    async def behind(keys: Collection[bytes]) -> dict[bytes, Written[bytes]]:
        return {key: Written(b"0" * 32, b"before") for key in keys}

    found = await compare(MemoryStore(memory), source(), TABLE, at_once, content=Texts(memory), newest=behind)
    assert (found.stale, found.different) == ([b"2"], [])


async def test_keys_alone(memory: Memory) -> None:
    held = memory.live.rows[TABLE]
    del held[b"1"]
    held[b"2"] = (b"0" * 32, b"{}", b"something else")
    held[b"77"] = (b"0" * 32, b"{}", b"not at the source")
    found = await compare(MemoryStore(memory), source(), TABLE, at_once)
    assert (found.missing, found.extra, found.stale, found.different) == ([b"1"], [b"77"], [], [])


async def test_what_arrives_in_time_is_no_difference(memory: Memory) -> None:
    row = memory.live.rows[TABLE].pop(b"1")
    passes = 0

    async def caught_up(position: bytes) -> None:
        nonlocal passes
        passes += 1
        if passes == 2:  # at the close look
            memory.live.rows[TABLE][b"1"] = row

    assert (await compare(MemoryStore(memory), source(), TABLE, caught_up, content=Texts(memory))).equal


async def test_the_store_has_come_to_the_moment_of_the_source(memory: Memory) -> None:
    """It is waited for once the source's moment has come, not before."""
    order: list[str] = []

    class Watched(Table):
        async def rows(self) -> AsyncIterator[Sequence[tuple[bytes, bytes]]]:
            order.append("moment")
            async for piece in super().rows():
                yield piece

    async def caught_up(position: bytes) -> None:
        order.append("caught up")

    table = Watched(source().held)
    assert (await compare(MemoryStore(memory), table, TABLE, caught_up, content=Texts(memory))).equal
    assert order == ["moment", "caught up"]


def changing(memory: Memory, follows: Callable[[int], None]) -> Table:
    """Row 1 changes before each look; `follows` gets the number of the change."""
    table = source()
    numbers = itertools.count(1)

    def change() -> None:
        number = next(numbers)
        table.held[b"1"] = b"version %d" % number
        follows(number)

    table._on_look = change
    return table


async def test_a_row_that_changes_at_each_look_and_is_never_there_is_missing(memory: Memory) -> None:
    del memory.live.rows[TABLE][b"1"]
    table = changing(memory, lambda number: None)
    found = await compare(MemoryStore(memory), table, TABLE, at_once, content=Texts(memory))
    assert (found.unsettled, found.missing) == ([], [b"1"])


async def test_a_row_that_changes_at_each_look_is_unsettled_while_the_store_follows(memory: Memory) -> None:
    held = memory.live.rows[TABLE]
    held[b"1"] = (b"0" * 32, b"{}", b"on its way")

    def follows(number: int) -> None:
        held[b"1"] = (b"%032d" % number, b"{}", b"version %d" % (number - 5))

    found = await compare(MemoryStore(memory), changing(memory, follows), TABLE, at_once, content=Texts(memory))
    assert (found.unsettled, found.stale, found.different) == ([b"1"], [], [])
    assert found.equal


async def test_a_row_that_changes_at_each_look_is_settled_when_the_store_has_what_was_seen(memory: Memory) -> None:
    held = memory.live.rows[TABLE]
    held[b"1"] = (b"0" * 32, b"{}", b"on its way")

    def follows(number: int) -> None:
        held[b"1"] = (b"%032d" % number, b"{}", b"version %d" % (number - 1))

    found = await compare(MemoryStore(memory), changing(memory, follows), TABLE, at_once, content=Texts(memory))
    assert (found.unsettled, found.stale, found.different) == ([], [], [])


async def test_a_sample_looks_at_a_share_of_what_else_the_store_holds(memory: Memory) -> None:
    held = memory.live.rows[TABLE]
    held.update({b"x%d" % n: (b"0" * 32, b"{}", b"not at the source") for n in range(1000)})
    store, content = MemoryStore(memory), Texts(memory)
    found = await compare(store, source(), TABLE, at_once, content=content, share=lambda: 0.5)
    assert 350 < len(found.extra) < 650  # nine standard deviations
