"""A store's versions beside the topic's: a record whose position or version vector is not its own would refuse newer
records, or let older ones in, although its content is right today.

A version is judged between two looks at the topic. With the store known to have applied everything up to the first, it
holds what either look shows or something between them; anything else is wrong. So nothing that moves is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from cdc.position import WIDTH

GONE = 0  # of a key that the topic does not hold
Held = Callable[[Sequence[bytes]], Awaitable[Sequence[bytes | None]]]


class Noted(NamedTuple):
    """A key's newest record in the topic: its position, and its version's hash."""

    position: bytes
    stamp: int


class Topic(Protocol):
    """The newest record of each key; see consumers.latest."""

    async def advance(self) -> None:
        """Reads what came since."""

    def of(self, keys: Sequence[bytes]) -> Sequence[Noted | None]:
        """Of each key, None for none."""

    def stamps(self, keys: Sequence[bytes]) -> Sequence[int]:
        """The hashes alone, GONE for none."""


class Stamps:
    """`held` gives what the store keeps as each record's version, as one text that begins with its position."""

    def __init__(self, topic: Topic, held: Held) -> None:
        self._topic, self._held = topic, held
        self._before: dict[bytes, Noted | None] = {}

    async def as_written(self, keys: Sequence[bytes]) -> list[bool]:
        """Whether each version is the topic's of a moment ago; one that is not may only have moved."""
        await self._topic.advance()
        held = await self._held(keys)
        return [stamp_hash(one) == wanted for one, wanted in zip(held, self._topic.stamps(keys), strict=True)]

    async def note(self, keys: Sequence[bytes]) -> None:
        """The first look at the topic."""
        await self._topic.advance()
        self._before = dict(zip(keys, self._topic.of(keys), strict=True))

    async def wrong(self, keys: Sequence[bytes]) -> set[bytes]:
        """Of keys that were noted, those of live records whose version is not theirs; the store has caught up since."""
        held = await self._held(keys)
        await self._topic.advance()
        after = self._topic.of(keys)
        return {
            key
            for key, one, noted in zip(keys, held, after, strict=True)
            if one is not None and not _plausible(one, self._before[key], noted)
        }


def stamp_hash(stamp: bytes | None) -> int:
    """To be compared with `Noted.stamp`; this process' own."""
    return (hash(stamp) or 1) if stamp else GONE


def _plausible(stamp: bytes, before: Noted | None, after: Noted | None) -> bool:
    if any(noted is not None and noted.stamp == stamp_hash(stamp) for noted in (before, after)):
        return True
    first = before.position if before is not None else b""
    return after != before and _between(first, stamp[:WIDTH], after)


def _between(first: bytes, position: bytes, after: Noted | None) -> bool:
    """A key that was deleted meanwhile says no more than that it moved."""
    return first < position and (after is None or position < after.position)
