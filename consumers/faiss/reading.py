"""The reading side: searches, counts, versions. Never waits for the disk, and goes on while the index is reopened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np

from cdc.errors import StoreError
from consumers.conditions import Where
from consumers.embedder import Embedder
from consumers.faiss.agreement import Disagreement, disagreement
from consumers.faiss.arrays import Vectors
from consumers.faiss.content import Content, Hit
from consumers.faiss.digests import digests, stamps
from consumers.faiss.ledger import State
from consumers.store import Version

T = TypeVar("T")
TURN = 20_000  # rows of the ledger listed in one turn at the gate: some 5 ms


class Statistics(NamedTuple):
    """The index at one moment, from the index itself. `dead` is a share, `size_bytes` without Python's overhead."""

    kind: str
    dimension: int | None
    vectors: int
    without_vector: int
    rejected: int
    tombstones: int
    dead: float
    size_bytes: int
    watermark: bytes


class Reading:
    """Fills Inspectable for one table. What it reads is `content`; whoever loads it puts it there."""

    def __init__(
        self, table: tuple[str, str], searchers: ThreadPoolExecutor, nprobe: int, embedder: Embedder | None
    ) -> None:
        self.content: Content | None = None
        self._table = table
        self._searchers = searchers
        self._nprobe = nprobe
        self._embedder = embedder

    async def count(self, schema: str, table: str) -> int:
        """Vectors really in the index."""
        content = self.loaded()
        return content.index.size if content.index is not None and (schema, table) == self._table else 0

    async def versions(self, schema: str, table: str, keys: Sequence[bytes]) -> list[Version | None]:
        """A rejected record counts as unknown: nothing is held of it."""
        if (schema, table) != self._table:
            return [None] * len(keys)
        return await self._read(lambda content: content.versions(keys))

    async def scan(self, schema: str, table: str) -> AsyncIterator[tuple[bytes, bytes]]:
        """Live records, those without a vector too; rejected ones are not there."""
        start = 0 if (schema, table) == self._table else None
        while start is not None:
            found, start = await self._read(partial(held, start=start))
            for key, position in found:
                yield key, position

    async def digests(
        self, schema: str, table: str, keys: Sequence[bytes], *, versions: bool, each: bool, vectors: bool = True
    ) -> list[str]:
        """Checksums over what the index really holds of the keys; see consumers.faiss.digests."""
        asked = keys if (schema, table) == self._table else []
        return await self._read(lambda content: digests(content, asked, versions=versions, each=each, vectors=vectors))

    async def stamps(self, schema: str, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Positions and version vectors; see consumers.faiss.digests."""
        asked = keys if (schema, table) == self._table else []
        return await self._read(lambda content: stamps(content, asked))

    async def disagreement(self) -> Disagreement:
        """Where ledger and index differ; see consumers.faiss.agreement."""
        return await self._read(disagreement)

    async def doubt(self, schema: str, table: str, keys: Sequence[bytes]) -> None:
        """The next record of each of these keys is decoded in full, its text embedded although it did not change."""
        if (schema, table) == self._table:
            await self._read(lambda content: doubt(content, keys))

    async def statistics(self) -> Statistics:
        """For people and for the gateway."""
        return await self._read(statistics_of)

    async def vector_of(self, key: bytes) -> Vectors | None:
        """The vector of a key as the index keeps it (length 1 under cosine), shape (d,); None without one."""
        return await self._read(lambda content: content.vector_of(key))

    async def search(self, vectors: Vectors, k: int, where: Where | None = None) -> list[list[Hit]]:
        """The k best of each query, shape (n, d), best first, among the rows for which `where` holds. Raises StoreError
        for a query or a condition that cannot be compared."""
        return await self._read(lambda content: content.search(vectors, k, self._nprobe, where))

    async def search_text(self, texts: Sequence[str], k: int, where: Where | None = None) -> list[list[Hit]]:
        """As `search`, embedded by what embeds the table. Raises StoreError when its vectors come from a column."""
        embedder = self._embedder
        if embedder is None:
            raise StoreError(
                f"the vectors of {'.'.join(self._table)} come from a column, so texts cannot be embedded here",
                hint="send a vector made by what fills that column",
            )
        return await self._read(lambda content: content.search(embedder.embed(texts), k, self._nprobe, where))

    async def find(self, query: str | Sequence[float], k: int, where: Where | None = None) -> list[Hit]:
        """The k best of one text or one vector. Raises StoreError, see `search`."""
        if isinstance(query, str):
            return (await self.search_text([query], k, where))[0]
        return (await self.search(np.array([query], dtype=np.float32), k, where))[0]

    def loaded(self) -> Content:
        """What is in memory. Raises StoreError before the first load."""
        if self.content is None:
            raise StoreError("the index is not loaded yet", hint="try again in a moment")
        return self.content

    async def _read(self, work: Callable[[Content], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._searchers, work, self.loaded())


def held(content: Content, start: int) -> tuple[list[tuple[bytes, bytes]], int | None]:
    """`(key, position)` of the live records among `TURN` rows of the ledger from `start` on, and where to go on: the
    gate is held for a few milliseconds."""
    with content.gate.reading():
        ledger = content.ledger
        states = ledger.states[start : start + TURN]
        rows = start + np.flatnonzero((states == State.LIVE) | (states == State.BARE))
        found = list(zip(ledger.keys[rows].tolist(), ledger.positions[rows].tolist(), strict=True))
        return found, start + TURN if start + TURN < len(ledger.states) else None


def doubt(content: Content, keys: Sequence[bytes]) -> None:
    """Forgets of which text the vectors of these keys were made."""
    with content.gate.writing():
        ids = content.ledger.look_up(keys)
        content.ledger.digests[ids[ids >= 0]] = 0


def statistics_of(content: Content) -> Statistics:
    """At one moment."""
    with content.gate.reading():
        counts, index, ledger = content.ledger.counts(), content.index, content.ledger
        size, dead = (index.size, index.dead) if index is not None else (0, 0)
        columns = (ledger.positions, ledger.digests, ledger.states, ledger.stamps, ledger.keys, ledger.vectors)
        return Statistics(
            kind=index.kind if index is not None else "empty",
            dimension=index.dimension if index is not None else content.source.dimension,
            vectors=size,
            without_vector=counts[State.BARE],
            rejected=counts[State.REJECTED],
            tombstones=counts[State.DELETED],
            dead=dead / (size + dead) if dead else 0.0,
            size_bytes=4 * size * (index.dimension if index is not None else 0)
            + sum(c.nbytes for c in columns)
            + content.filters.nbytes,
            watermark=content.watermark,
        )
