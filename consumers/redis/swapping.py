"""Rebuilding beside the live store, in another database of the same server, exchanged by SWAPDB.

SWAPDB is one step for every reader: connections that selected the live database see the new data at once, under the
same keys, and the old data stays in the other database for `rollback`. A consumer that was writing finds another
instance in the sentinel at its next batch, gets StoreLost, reopens and goes on from the offsets of the new store.
It moves a whole database: so both databases must hold our keys only, and Redis Cluster, which has one database, is
refused. Renaming a million keys would be neither one step nor quick.
"""

from __future__ import annotations

from typing import Self

from cdc.config import Config
from cdc.errors import PreconditionError, StoreError
from consumers.redis.link import Link
from consumers.redis.sentinel import Sentinel, key_of, open_sentinel, read_sentinel


class Swapping:
    """The Rebuildable half of the store."""

    def __init__(self, config: Config, database: int | None = None) -> None:
        self.config = config
        self.link = Link(config.redis, database)

    async def shadow(self) -> Self:
        """An empty store in the next database; what an earlier rebuild left there is removed.

        Raises PreconditionError when either database holds keys of others."""
        namespace = self.config.redis.namespace
        live = await open_sentinel(self.link, namespace)
        other = type(self)(self.config, await self._next_database(live))
        await _refuse_foreign(self.link, self.config, live)
        try:
            left = await read_sentinel(other.link, namespace)
            await _refuse_foreign(other.link, self.config, left)
            await other.link.command("FLUSHDB", "ASYNC")  # nothing but ours is there
            made = await open_sentinel(other.link, namespace)
            await _set(other.link, namespace, made, "role", "shadow")
            await _set(self.link, namespace, live, "beside", str(other.link.database))
        finally:
            await other.link.close()
        return other

    async def swap(self) -> None:
        """Exchanges live and shadow. Raises StoreError when there is no shadow, PreconditionError for foreign keys."""
        await self._exchange("shadow")

    async def rollback(self) -> None:
        """Exchanges live and previous; doing it twice goes forward again."""
        await self._exchange("previous")

    async def _exchange(self, role: str) -> None:
        namespace = self.config.redis.namespace
        live = await read_sentinel(self.link, namespace)
        if live is None or live.beside is None:
            raise StoreError(
                f"there is no {role} store beside Redis at {self.link.where}", hint="run `cdc rebuild redis` first"
            )
        await _refuse_foreign(self.link, self.config, live)
        await self.link.run("swap", [key_of(namespace)], [self.link.database, live.beside, role])

    async def _next_database(self, live: Sentinel) -> int:
        """The one used before, else the next one."""
        info = await self.link.command("CONFIG", "GET", "databases")
        total = int(info["databases"] if isinstance(info, dict) else info[1])
        if total < 2 or await self.link.is_cluster():
            raise PreconditionError(
                f"Redis at {self.link.where} has one database, a rebuild needs a second",
                hint="set `databases 2` in its configuration; a Redis Cluster has one only: rebuild into another one",
            )
        return live.beside if live.beside is not None else (self.link.database + 1) % total


async def _set(link: Link, namespace: str, sentinel: Sentinel, field: str, value: str) -> None:
    await link.run("mark", [key_of(namespace)], [sentinel.instance, field, value])


async def _refuse_foreign(link: Link, config: Config, sentinel: Sentinel | None) -> None:
    """Looks at every key of the database; a foreign one would be moved away from whoever reads it."""
    patterns = []
    for layout in sentinel.tables.values() if sentinel else ():
        escaped = "".join(c if c.isalnum() else f"%{c}" for c in layout.names.index_prefix)
        patterns += [layout.names.lua, f"^{escaped}[^:{{}}]*$"]
    cursor = b"0"
    while True:
        cursor, foreign = await link.run("foreign", [], [cursor, config.redis.namespace, *patterns])
        if foreign:
            raise PreconditionError(
                f"Redis at {link.where} also holds the key {foreign.decode(errors='replace')!r}, which is not ours",
                hint="give the store a database of its own ([redis] url = …/N), and leave the next one to rebuilds",
            )
        if cursor == b"0":
            return
