"""Versions beside the topic's: one that is not the record's own is told, one that moves is not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from consumers.stamps import Noted, Stamps, stamp_hash

KEY = b"k"


def stamp(number: int, vector: str = "{}") -> bytes:
    return b"%032d|%b" % (number, vector.encode())


def noted(number: int | None) -> Noted | None:
    return None if number is None else Noted(stamp(number)[:32], stamp_hash(stamp(number)))


class Moving:
    """A topic that shows one key's records one after the other, a look each."""

    def __init__(self, *looks: int | None) -> None:
        self._looks = list(looks)
        self._now: int | None = None

    async def advance(self) -> None:
        self._now = self._looks.pop(0)

    def of(self, keys: Sequence[bytes]) -> list[Noted | None]:
        return [noted(self._now) for _ in keys]

    def stamps(self, keys: Sequence[bytes]) -> list[int]:
        return [0 if one is None else one.stamp for one in self.of(keys)]


@pytest.mark.parametrize(
    ("before", "held", "after", "wrong"),
    [
        (5, stamp(5), 5, False),
        (5, stamp(4), 5, True),  # the store had applied all of the first look
        (5, stamp(6), 5, True),  # from nowhere
        (5, stamp(5, "{1}"), 5, True),
        (5, stamp(7), 9, False),  # passed by between the looks
        (5, stamp(9), 9, False),
        (5, stamp(10), 9, True),
        (5, stamp(4), 9, True),
        (None, stamp(3), None, True),  # the topic does not know it
        (None, stamp(3), 4, False),
        (5, stamp(6), None, False),  # changed and deleted between the looks
        (5, None, 5, False),  # nothing is held: it is missing, not wrong
    ],
)
async def test_judged_between_two_looks(before: int | None, held: bytes | None, after: int | None, wrong: bool) -> None:
    async def held_of(keys: Sequence[bytes]) -> list[bytes | None]:
        return [held]

    stamps = Stamps(Moving(before, after), held_of)
    await stamps.note([KEY])
    assert await stamps.wrong([KEY]) == ({KEY} if wrong else set())


async def test_a_first_pass_asks_for_the_newest() -> None:
    async def held_of(keys: Sequence[bytes]) -> list[bytes | None]:
        return [stamp(5)]

    stamps = Stamps(Moving(5, 6), held_of)
    assert [await stamps.as_written([KEY]), await stamps.as_written([KEY])] == [[True], [False]]
