"""The demo's writes: ordinary SQL on `public.memories`, as any application would do it."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg

from cdc.demo.texts import Text

BULK_ROWS = 500  # a transaction: what an importer would do
INSERT = """
    INSERT INTO memories (id, user_id, kind, content, metadata, importance) VALUES (%s, %s, %s, %s, %s, %s)"""
UPDATE = """
    UPDATE memories SET content = %s, importance = %s WHERE id = %s RETURNING version_vector"""
DELETE = "DELETE FROM memories WHERE id = %s"


class Change(NamedTuple):
    """A committed change; `vector` is the row's version vector, None when the row was deleted."""

    id: str
    content: str
    vector: dict[str, int] | None


class Writer:
    """One application with one connection (autocommit). The same `rng` seed gives the same rows and choices."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], rng: random.Random) -> None:
        self._connection = connection
        self._rng = rng
        self._ids: list[str] = []
        self._contents: dict[str, str] = {}

    async def bulk(self, texts: Sequence[Text]) -> None:
        """All of them, in transactions of BULK_ROWS."""
        for start in range(0, len(texts), BULK_ROWS):
            rows = [self._row(text) for text in texts[start : start + BULK_ROWS]]
            async with self._connection.transaction(), self._connection.cursor() as cursor:
                await cursor.executemany(INSERT, rows)

    async def insert(self, text: Text) -> Change:
        """One row, committed."""
        row = self._row(text)
        return await self._changed(f"{INSERT} RETURNING version_vector", row, row[0], text.content)

    async def update(self) -> Change:
        """A row of this writer gets a longer text."""
        at = self._rng.randrange(len(self._ids))
        key = self._ids[at]
        content = f"{self._contents[key]}\n\nRead again on page {self._rng.randrange(1, 1000)}."
        self._contents[key] = content
        return await self._changed(UPDATE, (content, self._rng.random(), key), key, content)

    async def delete(self) -> Change:
        """A row of this writer goes."""
        at = self._rng.randrange(len(self._ids))
        self._ids[at], self._ids[-1] = self._ids[-1], self._ids[at]
        key = self._ids.pop()
        await self._connection.execute(DELETE, (key,))
        return Change(key, self._contents.pop(key), None)

    async def any(self, text: Text) -> Change:
        """Mostly an insert, sometimes an update or a delete."""
        chance = self._rng.random()
        if chance < 0.5:
            return await self.insert(text)
        return await (self.update() if chance < 0.8 else self.delete())

    def _row(self, text: Text) -> tuple[Any, ...]:
        key = str(uuid.UUID(int=self._rng.getrandbits(128), version=4))
        self._ids.append(key)
        self._contents[key] = text.content
        metadata = json.dumps({"name": text.name})
        return key, text.name.partition(".")[0], text.kind, text.content, metadata, self._rng.random()

    async def _changed(self, query: Any, values: Sequence[Any], key: str, content: str) -> Change:
        found = await self._connection.execute(query, values)
        row = await found.fetchone()
        return Change(key, content, row[0] if row else None)
