"""What the index's service answers from: the index of this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from cdc.config import Config
from consumers.conditions import Where
from consumers.faiss import FaissStore
from consumers.gateway.index import Found, Parts
from consumers.gateway.models import Figures
from consumers.runtime import Runtime
from consumers.store import Version


class ServedIndex:
    """The index as its service asks it. Raises StoreError until it is loaded."""

    def __init__(self, config: Config, store: FaissStore) -> None:
        self._settings = config.faiss
        self._store = store

    async def search(self, query: str | Sequence[float], k: int, where: Where | None) -> Sequence[Found]:
        """The best `k` for which `where` holds. Raises StoreError."""
        found = await self._store.find(query, k, where)
        return [Found(hit.key, hit.score, Version(hit.position, hit.vector)) for hit in found]

    async def count(self, schema: str, table: str) -> int:
        """Vectors in the index."""
        return await self._store.count(schema, table)

    async def versions(self, schema: str, table: str, keys: Sequence[bytes]) -> list[Version | None]:
        """What is held of the keys."""
        return await self._store.versions(schema, table, keys)

    def scan(self, schema: str, table: str) -> AsyncIterator[tuple[bytes, bytes]]:
        """Every live record."""
        return self._store.scan(schema, table)

    async def figures(self) -> Figures:
        """Of one moment, but for the disk."""
        held = await self._store.statistics()
        return Figures(
            table=self._settings.table,
            kind=held.kind,
            dimension=held.dimension,
            records=held.vectors + held.without_vector,
            vectors=held.vectors,
            rejected=held.rejected,
            tombstones=held.tombstones,
            dead=held.dead,
            memory_bytes=held.size_bytes,
            disk_bytes=await asyncio.to_thread(_size, self._settings.path),
        )


def _size(folder: Path) -> int:
    """Bytes of all files below; one that goes away meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # a snapshot that has just been replaced
    return total


def parts(config: Config, store: FaissStore, runtime: Runtime) -> Parts:
    """Everything the service answers from."""
    served = ServedIndex(config, store)
    return Parts(
        store=served,
        index=served,
        freshness=runtime.freshness,
        objective_seconds=config.freshness.objective_seconds,
        wait_for=runtime.wait_for,
        reached=lambda: runtime.partitions.reached,
        vector_of=store.vector_of,
        verified=store,
    )
