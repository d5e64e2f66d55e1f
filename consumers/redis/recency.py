"""Whether the recency indexes are those of the records: each record in its user's, with its score, and nothing else.

What one call sees is one moment of the server, and records and indexes change in the same call: so nothing that moves
is taken for a difference. An index keeps the newest `recency_limit`; a record that it lacks is told when it would have
a place there: with a score above the least, or when its user has no more records than fit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, NamedTuple

from cdc.config import Table
from cdc.errors import DecodeError
from consumers.redis.layout import Layout
from consumers.redis.link import Link
from consumers.redis.rows import microseconds

STEP = 500  # records looked at in one call: two milliseconds of the server
MEMBERS = 500  # of small indexes looked at in one call; one that is larger has a call of its own
NAMES = 1000  # keys SCAN looks at in one step


class Stranger(NamedTuple):
    """A member of an index that is not a record of its user; `live`: it is one of another."""

    key: bytes
    live: bool


class Recency:
    """The indexes of one table that names a `user`; `limit` is how many newest records each keeps."""

    def __init__(self, link: Link, layout: Layout, settings: Table, limit: int) -> None:
        self._link, self._layout, self._settings, self._limit = link, layout, settings, limit

    async def misplaced(self) -> list[bytes]:
        """Keys of records that their user's index lacks, or has with another score. Raises ConnectError, StoreError."""
        wrong: list[bytes] = []
        absent: dict[bytes, bytes] = {}  # by key, the index
        users: Counter[int] = Counter()
        async for found in self._steps():
            users.update(hash(index) for _key, index, *_rest in found)
            for key, index, *rest in found:
                wrong += [key] if self._wrong(*rest) else []
                absent.update({key: index} if rest[2] is None else {})
        suspects = [key for key, index in absent.items() if key not in wrong and users[hash(index)] <= self._limit]
        for start in range(0, len(suspects), STEP):
            _cursor, found = await self._look(b"0", suspects[start : start + STEP])
            wrong += [key for key, _index, _recency, _written, score, *_least in found if score is None]
        return [topic_key for key in dict.fromkeys(wrong) for topic_key in await self._topic_keys([key])]

    async def strangers(self, *, remove: bool = False) -> list[Stranger]:
        """Members that do not belong; none where records expire, for they leave their index behind.

        Raises ConnectError, StoreError."""
        if self._settings.ttl_seconds is not None:
            return []
        found: list[Stranger] = []
        prefix, task = self._layout.names.index_prefix, "remove" if remove else "tell"
        async for names in self._indexes():
            for member, live, key in await self._link.run("strangers", names, [self._settings.user, prefix, task]):
                found += [Stranger(key or self._named(member), bool(live))]
        return found

    async def _steps(self) -> AsyncIterator[list[Any]]:
        cursor = b"0"
        while True:
            cursor, found = await self._look(cursor, [])
            yield found
            if cursor == b"0":
                return

    async def _look(self, cursor: bytes, keys: Sequence[bytes]) -> Any:
        names, settings = self._layout.names, self._settings
        args = [cursor, names.glob, names.lua, STEP, settings.user, settings.recency or "", names.index_prefix]
        return await self._link.run("recency", keys, args)

    def _wrong(self, recency: Any, written: Any, score: Any, size: Any = None, least: Any = None) -> bool:
        wanted = _score(recency, written)
        if score is not None:
            return wanted is None or float(score) != wanted
        return wanted is None or least is None or wanted > float(least)

    async def _indexes(self) -> AsyncIterator[list[bytes]]:
        cursor: Any = 0
        pattern = self._layout.names.index_glob
        while True:
            cursor, names = await self._link.command("SCAN", cursor, "MATCH", pattern, "COUNT", NAMES, "TYPE", "zset")
            sizes = await self._link.pipeline([("ZCARD", name) for name in names]) if names else []
            for group in _groups(names, sizes):
                yield group
            if cursor == 0:
                return

    async def _topic_keys(self, names: Sequence[bytes]) -> list[bytes]:
        replies = await self._link.pipeline([("HGET", name, "_key") for name in names])
        return [reply or self._named(name) for name, reply in zip(names, replies, strict=True)]

    def _named(self, name: bytes) -> bytes:
        """The topic key of a record of that name; the name itself where no record can have it."""
        try:
            return self._layout.topic_key(name.decode())
        except (DecodeError, UnicodeDecodeError):
            return name


def _score(recency: Any, written: Any) -> float | None:
    """As RowEncoder gives it; None where it is no time."""
    try:
        return float(str(microseconds(recency.decode())) if recency is not None else written)
    except (ValueError, TypeError):
        return None


def _groups(names: Sequence[bytes], sizes: Sequence[int]) -> Iterator[list[bytes]]:
    group: list[bytes] = []
    held = 0
    for name, size in zip(names, sizes, strict=True):
        if group and held + size > MEMBERS:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group
