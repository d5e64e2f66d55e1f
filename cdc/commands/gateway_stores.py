"""Redis and the index as the gateway asks them."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from cdc.commands.gateway_keys import no_users, values_of
from cdc.commands.index_client import RemoteIndex
from cdc.config import Config
from cdc.envelope import decode_key
from cdc.errors import CdcError, StoreError
from cdc.version import decode_vector
from consumers.gateway.asked import IndexQuery
from consumers.gateway.models import IndexHits
from consumers.gateway.parts import Counts, Memory, Row, StoreLook
from consumers.redis import RedisStore, keys_for
from consumers.redis.keys import encode_odd
from consumers.redis.layout import Layout
from consumers.redis.reading import STEP
from consumers.redis.rows import STALE
from consumers.redis.sentinel import Sentinel, read_sentinel
from consumers.store import Offsets


class RedisView:
    """Fills consumers.gateway.parts.WorkingMemory. Raises ConnectError, StoreError."""

    name = "redis"

    def __init__(self, config: Config, store: RedisStore) -> None:
        self._config = config
        self._store = store

    def keeps(self, table: str) -> bool:
        """Every table that travels."""
        return any(fnmatch.fnmatchcase(table, pattern) for pattern in self._config.postgres.tables)

    def expires(self, table: str) -> bool:
        """With a time to live."""
        return self._config.table(*table.split(".", 1)).ttl_seconds is not None

    async def offsets(self) -> Offsets:
        """As the sentinel holds them."""
        return (await self._sentinel()).offsets

    async def look(self, tables: Sequence[str]) -> StoreLook:
        """Walks over the whole database, once a table."""
        held = await self._sentinel()
        counts = {table: await self._count(table, held.tables.get(table)) for table in tables}
        memory = await self._store.link.command("INFO", "memory")
        return StoreLook(counts, held.offsets, memory_bytes=int(memory["used_memory"]), notes={"role": held.role})

    async def _count(self, table: str, layout: Layout | None) -> Counts:
        """In one walk; embeddings only where Redis keeps a table's vectors."""
        vector = self._config.table(*table.split(".", 1)).vector
        if vector is None or self._config.redis.vectors == "omit" or layout is None:
            return Counts(records=await self._store.count(*table.split(".", 1)))
        cursor, records, embedded = b"0", 0, 0
        while True:
            args = [cursor, layout.names.glob, layout.names.lua, STEP, "having", vector]
            cursor, some, having = await self._store.link.run("walk", [], args)
            records, embedded = records + some, embedded + sum(having)
            if cursor == b"0":
                return Counts(records=records, with_embeddings=embedded, without_embeddings=records - embedded)

    async def rows(self, table: str, keys: Sequence[bytes]) -> Sequence[Row | None]:
        """None for a record that is not there."""
        schema, name = table.split(".", 1)
        names = [keys_for(self._config, schema, name, key) for key in keys]
        replies = await self._hashes(names)
        return [None if reply is None else self._row(table, reply) for reply in replies]

    async def memory(self, table: str, identity: str) -> Memory | None:
        """None for a table of which nothing came yet, too."""
        layout = (await self._sentinel()).tables.get(table)
        if layout is None:
            return None
        name = layout.names.render(values_of(identity, [column for column, _quoted in layout.key]))
        [fields] = await self._hashes([name])
        return None if fields is None else self._memory(table, layout, name, fields)

    async def recent(self, table: str, user: str, limit: int) -> list[Memory]:
        """Records that expired meanwhile are left out."""
        layout = (await self._sentinel()).tables.get(table)
        if self._config.table(*table.split(".", 1)).user is None:
            raise no_users(table)
        if layout is None:
            return []
        index = layout.names.index_prefix + encode_odd(user)
        names = [name.decode() for name in await self._store.link.command("ZREVRANGE", index, 0, limit - 1)]
        found = zip(names, await self._hashes(names), strict=True)
        return [self._memory(table, layout, name, fields) for name, fields in found if fields is not None]

    async def _sentinel(self) -> Sentinel:
        held = await read_sentinel(self._store.link, self._config.redis.namespace)
        if held is None:
            raise StoreError("Redis holds no data of ours", hint="a running `cdc consume redis` fills it")
        return held

    async def _hashes(self, names: Sequence[str]) -> list[dict[bytes, bytes] | None]:
        """None where there is nothing, or nothing of ours."""
        replies = await self._store.link.pipeline([("HGETALL", name) for name in names]) if names else []
        return [_hash(reply) for reply in replies]

    def _memory(self, table: str, layout: Layout, name: str, fields: dict[bytes, bytes]) -> Memory:
        key = fields.get(b"_key") or layout.topic_key(name)
        return Memory(
            key=decode_key(key),
            row=dict(self._row(table, fields)),
            source=self.name,
            position=fields[b"_pos"].decode(),
            vector=decode_vector(fields[b"_ver"]) if b"_ver" in fields else None,
            outdated=fields[STALE.encode()].decode() if STALE.encode() in fields else None,
        )

    def _row(self, table: str, fields: Mapping[bytes, bytes]) -> Row:
        """Without our own fields, but for what tells that the row is outdated; without a vector's bytes."""
        vector = self._config.table(*table.split(".", 1)).vector
        shown = {name.decode(): value for name, value in fields.items()}
        ours = {name for name in shown if name.startswith("_") and name != STALE}
        return {name: value.decode() for name, value in shown.items() if name not in ours and name != vector}


def _hash(reply: Any) -> dict[bytes, bytes] | None:
    if isinstance(reply, CdcError):
        raise reply
    return reply if isinstance(reply, dict) and b"_pos" in reply else None


class IndexView:
    """Fills StoreView and Index of consumers.gateway.parts, by the service of the process that holds the index."""

    name = "faiss"

    def __init__(self, config: Config, index: RemoteIndex) -> None:
        self._table = config.faiss.table
        self._index = index

    def keeps(self, table: str) -> bool:
        """One table."""
        return table == self._table

    def expires(self, table: str) -> bool:
        """Never."""
        return False

    async def offsets(self) -> Offsets:
        """As far as its consumer has applied."""
        return {(topic, partition): offset for topic, partition, offset in (await self._index.stats()).offsets}

    async def look(self, tables: Sequence[str]) -> StoreLook:
        """Of one moment."""
        stats = await self._index.stats()
        offsets = {(topic, partition): offset for topic, partition, offset in stats.offsets}
        figures = stats.figures
        if figures is None:
            raise StoreError("the index's service gives no figures", hint="is it of the same version?")
        counts = Counts(
            records=figures.records,
            with_embeddings=figures.vectors,
            without_embeddings=figures.records - figures.vectors,
        )
        notes = figures.model_dump(include={"kind", "dimension", "rejected", "tombstones", "dead"})
        memory, disk = figures.memory_bytes, figures.disk_bytes
        return StoreLook(dict.fromkeys(tables, counts), offsets, memory, disk, notes)

    async def search(self, query: IndexQuery) -> IndexHits:
        """Handed on."""
        return await self._index.search(query)
