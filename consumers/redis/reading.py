"""Looking into the store: counts, versions, all keys. Everything is read from the records themselves.

`count` walks the key space in steps of about a millisecond and counts hashes whose key is exactly of the table's
template and that hold a position: so records that expired, were evicted or deleted by hand are not counted, which no
counter could tell. It costs one to four seconds of the server per million keys of the database, so it is not to be
waited for where records wait. While the database shrinks to a tenth, SCAN may show a key twice (its "guarantees").
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import msgspec

from cdc.config import Config
from cdc.errors import CdcError, DecodeError
from cdc.position import ZERO
from consumers.redis.keys import keys_for
from consumers.redis.layout import Layout
from consumers.redis.link import Link
from consumers.redis.recency import Recency
from consumers.redis.sentinel import key_of, read_sentinel
from consumers.store import Offsets, Version

STEP = 250  # keys SCAN looks at in one step: about a millisecond of the server
NAMES = 1000  # the same of a step that looks at names only
READ = 500  # keys asked for in one round trip
WIDTH = 32  # digits of a position, before the vector in a tombstone
_pack = msgspec.msgpack.encode


async def walk(
    link: Link, layout: Layout, task: str | bytes, only_while: tuple[str, str] | None = None
) -> AsyncIterator[tuple[int, list[list[bytes]]]]:
    """Steps of walk.lua until the whole database has been seen: `(how many, what was listed)`; with `only_while`, a
    hash and a field, as long as that is there."""
    keys, fields = ([only_while[0]], [only_while[1]]) if only_while else ([], [])
    names, cursor = layout.names, b"0"
    while True:
        args = [cursor, names.glob, names.lua, STEP, task, layout.indexed or "", names.index_prefix]
        cursor, count, listed = await link.run("walk", keys, [*args, *fields])
        yield count, listed
        if cursor == b"0":
            return


class Reading:
    """The Inspectable half of the store; works without `open`."""

    config: Config
    link: Link

    async def count(self, schema: str, table: str) -> int:
        """Live records of the table; 0 for one never seen."""
        layout = await self._layout(schema, table)
        if layout is None:
            return 0
        total = 0
        async for count, _ in walk(self.link, layout, "count"):
            total += count
        return total

    async def versions(self, schema: str, table: str, keys: Sequence[bytes]) -> list[Version | None]:
        """Of records and of tombstones, in the order of `keys`."""
        versions: list[Version | None] = []
        for start in range(0, len(keys), READ):
            names = [keys_for(self.config, schema, table, key) for key in keys[start : start + READ]]
            versions += await self._versions(names)
        return versions

    async def scan(self, schema: str, table: str) -> AsyncIterator[tuple[bytes, bytes]]:
        """`(topic key, position)` of every live record; one may come twice while the database is resized."""
        layout = await self._layout(schema, table)
        if layout is None:
            return
        async for _, listed in walk(self.link, layout, "list"):
            for name, position, key in listed:
                yield key or layout.topic_key(name.decode()), position

    async def layout(self, schema: str, table: str) -> Layout | None:
        """How the table's keys are named; None for one never seen."""
        return await self._layout(schema, table)

    async def names(self, layout: Layout) -> AsyncIterator[list[bytes]]:
        """Redis keys that may be the table's, in steps: hashes of its pattern. One may come twice, as in `scan`."""
        cursor = 0
        while True:
            cursor, names = await self.link.command(
                "SCAN", cursor, "MATCH", layout.names.glob, "COUNT", NAMES, "TYPE", "hash"
            )
            yield names
            if cursor == 0:
                return

    async def topic_keys(self, layout: Layout, names: Sequence[bytes]) -> list[bytes]:
        """The topic keys of those that are live records."""
        found: list[bytes] = []
        for start in range(0, len(names), READ):
            asked = names[start : start + READ]
            replies = await self.link.pipeline([("HMGET", name, "_pos", "_key") for name in asked])
            for name, reply in zip(asked, replies, strict=True):
                if isinstance(reply, list) and reply[0] is not None and _is_named(layout, name):
                    found.append(reply[1] or layout.topic_key(name.decode()))
        return found

    async def digests(self, fields: Sequence[str], names: Sequence[bytes], *, each: bool) -> list[bytes]:
        """SHA-1 in hex of what these keys hold, one of all or one of each; see digest.lua."""
        found = await self.link.run("digest", names, [_pack(list(fields)), "each" if each else "all"])
        return found if each else [found]

    async def stamps(self, schema: str, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """What live records say of their version: `<position>|<version vector>|<time>`; None where one is missing."""
        layout = await self._layout(schema, table)
        if layout is None:
            return [None] * len(keys)
        found: list[bytes | None] = []
        for start in range(0, len(keys), READ):
            found += await self.link.run("stamp", _names(layout, keys[start : start + READ]), [])
        return found

    async def lower(self, schema: str, table: str, keys: Sequence[bytes], reached: bytes) -> int:
        """Has the records and tombstones of these keys that claim a position above `reached` (wire form) take whatever
        comes next; how many did. Raises ConnectError, StoreError."""
        layout, number = await self._layout(schema, table), 0
        args = [reached, ZERO.encode(), f"{self.config.redis.namespace}tomb:"]
        for start in range(0, len(keys) if layout else 0, READ):
            assert layout is not None
            number += await self.link.run("lower", _names(layout, keys[start : start + READ]), args)
        return number

    async def recency(self, schema: str, table: str) -> Recency | None:
        """The table's recency indexes; None where it has none."""
        layout, settings = await self._layout(schema, table), self.config.table(schema, table)
        if layout is None or not settings.user:
            return None
        return Recency(self.link, layout, settings, self.config.redis.recency_limit)

    async def marks(self, schema: str, table: str) -> tuple[Offsets, dict[str, bytes]]:
        """Offsets of every partition, and the positions (wire form) the store goes by, by what they are."""
        held = await self.link.command("HGETALL", key_of(self.config.redis.namespace))
        fields = {name.decode(): value for name, value in (held.items() if isinstance(held, dict) else ())}
        partitions = {name: name.removeprefix("o:").rpartition(":") for name in fields if name.startswith("o:")}
        offsets = {(topic, int(number)): int(fields[name]) for name, (topic, _, number) in partitions.items()}
        wanted = {"floor": f"f:{schema}.{table}", "newest position": f"n:{schema}.{table}", "watermark": "watermark"}
        return offsets, {what: fields[name] for what, name in wanted.items() if name in fields}

    async def _layout(self, schema: str, table: str) -> Layout | None:
        sentinel = await read_sentinel(self.link, self.config.redis.namespace)
        return sentinel.tables.get(f"{schema}.{table}") if sentinel else None

    async def _versions(self, names: Sequence[str]) -> list[Version | None]:
        tomb = f"{self.config.redis.namespace}tomb:"
        commands = [words for name in names for words in (("HMGET", name, "_pos", "_ver"), ("GET", tomb + name))]
        replies = await self.link.pipeline(commands)
        return [_version(*pair) for pair in zip(replies[::2], replies[1::2], strict=True)]


def _names(layout: Layout, keys: Sequence[bytes]) -> list[bytes]:
    """Redis keys; one that is none of the table's stands for itself, and nothing is found there."""
    names = []
    for key in keys:
        try:
            names.append(layout.redis_key(key)[0])
        except DecodeError:
            names.append(key)
    return names


def _is_named(layout: Layout, name: bytes) -> bool:
    try:
        layout.names.values(name.decode())
    except (DecodeError, UnicodeDecodeError):
        return False
    return True


def _version(held: list[bytes | None] | CdcError, tomb: bytes | CdcError | None) -> Version | None:
    """A key that holds something else than a hash (the error in `held`) has no version."""
    if isinstance(tomb, CdcError):
        raise tomb
    if isinstance(held, list) and held[0] is not None:
        return Version(held[0], held[1] or b"{}")
    return Version(tomb[:WIDTH], tomb[WIDTH:], deleted=True) if tomb else None
