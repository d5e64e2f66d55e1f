"""A whole store in memory: the smallest thing that keeps the store's contract, durable steps and losses included.

`Memory` is what survives a process: it stands for the server or the disk. `MemoryStore` is one process's connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import REGISTRY

from cdc.config import Config
from cdc.envelope import decode_after
from cdc.errors import ConnectError, RecordError, StoreError, StoreLost
from consumers.runtime import Runtime
from consumers.store import Applied, Batch, Offsets, Partition, Record, Rejected, Store, Version

POISON = b'"poison"'  # a row whose text is this is refused


@dataclass
class Contents:
    """Rows of every table: key → (position, vector, raw row or None for a tombstone), and what is durable.

    `floors`: of a table everything older is gone (truncated, swept), and stays gone when it comes again."""

    rows: dict[tuple[str, str], dict[bytes, tuple[bytes, bytes, bytes | None]]] = field(default_factory=dict)
    floors: dict[tuple[str, str], bytes] = field(default_factory=dict)
    offsets: dict[Partition, int] = field(default_factory=dict)
    logs: dict[Partition, str] = field(default_factory=dict)


@dataclass
class Memory:
    """What outlives a process. `away`: unreachable. `raises`: a poisoned record is raised instead of returned."""

    live: Contents = field(default_factory=Contents)
    old: Contents | None = None
    away: bool = False
    raises: bool = False
    lazy: bool = False  # only a forced flush is durable
    applied: int = 0  # batches that changed nothing count too
    written: int = 0  # records that changed something
    opened: int = 0

    def wipe(self) -> None:
        """FLUSHALL."""
        self.live = Contents()


class MemoryStore:
    """A connection to `Memory`; notices when the contents it opened are not the live ones any more."""

    def __init__(self, memory: Memory, name: str = "memory", contents: Contents | None = None) -> None:
        self.name = name
        self._memory = memory
        self._given = contents
        self._contents: Contents | None = None
        self._shadow: Contents | None = None
        self._reached: dict[Partition, int] = {}

    def _reachable(self) -> Contents:
        if self._memory.away:
            raise ConnectError("the memory store is away", hint="wait")
        live = self._given or self._memory.live
        if self._contents is not None and self._contents is not live:
            raise StoreLost("the memory store was emptied or swapped", hint="it is refilled")
        return live

    async def open(self) -> Offsets:
        self._contents = None
        self._contents = self._reachable()
        self._memory.opened += 1
        self._reached = dict(self._contents.offsets)
        return dict(self._contents.offsets)

    @property
    def logs(self) -> Mapping[Partition, str]:
        return self._contents.logs if self._contents is not None else {}

    async def begin(self, logs: Mapping[Partition, str], void: Collection[Partition]) -> None:
        contents = self._reachable()
        contents.logs.update(logs)
        for partition in void:
            contents.offsets.pop(partition, None)
            self._reached.pop(partition, None)

    async def apply(self, batch: Batch) -> Applied:
        contents = self._reachable()
        rows = contents.rows.setdefault((batch.schema, batch.table), {})
        floor = contents.floors.get((batch.schema, batch.table), b"")
        done = Applied()
        self._memory.applied += 1
        for record in batch.records:
            self._apply(rows, floor, record, done)
        if not done.rejected:
            self._note(contents, batch)
        return done

    def _apply(
        self, rows: dict[bytes, tuple[bytes, bytes, bytes | None]], floor: bytes, record: Record, done: Applied
    ) -> None:
        row = None if record.value is None else decode_after(record.value)[1]
        if row is not None and POISON in row:
            if self._memory.raises:
                raise RecordError("poison", "a poisoned record")
            done.rejected.append(Rejected(record, "poison", "a poisoned record"))
        elif record.position < floor or (record.key in rows and rows[record.key][0] >= record.position):
            done.stale += 1
        else:
            rows[record.key] = (record.position, record.vector, row)
            self._memory.written += 1
            done.upserts += row is not None
            done.deletes += row is None

    def _note(self, contents: Contents, batch: Batch) -> None:
        self._reached.update(batch.offsets)
        if not self._memory.lazy:
            contents.offsets.update(batch.offsets)

    async def truncate(self, batch: Batch, below: bytes) -> int:
        contents = self._reachable()
        table = batch.schema, batch.table
        rows = contents.rows.setdefault(table, {})
        contents.floors[table] = max(below, contents.floors.get(table, b""))
        gone = [key for key, row in rows.items() if row[0] < below]
        for key in gone:
            del rows[key]
        self._note(contents, batch)
        return len(gone)

    async def flush(self, *, force: bool = False) -> Offsets:
        contents = self._reachable()
        if force:
            contents.offsets.update(self._reached)
        return dict(contents.offsets)

    async def check(self) -> None:
        self._reachable()

    async def close(self) -> None:
        self._contents = None

    # Inspectable

    async def count(self, schema: str, table: str) -> int:
        rows = self._reachable().rows.get((schema, table), {})
        return sum(row[2] is not None for row in rows.values())

    async def versions(self, schema: str, table: str, keys: Sequence[bytes]) -> list[Version | None]:
        rows = self._reachable().rows.get((schema, table), {})
        found = [rows.get(key) for key in keys]
        return [row and Version(row[0], row[1], row[2] is None) for row in found]

    async def scan(self, schema: str, table: str) -> AsyncIterator[tuple[bytes, bytes]]:
        for key, row in list(self._reachable().rows.get((schema, table), {}).items()):
            if row[2] is not None:
                yield key, row[0]

    # Rebuildable

    async def shadow(self) -> Store:
        self._shadow = Contents()
        return MemoryStore(self._memory, self.name, self._shadow)

    async def swap(self) -> None:
        if self._shadow is None:
            raise StoreError("there is no shadow", hint="build one first")
        self._memory.live, self._memory.old, self._shadow = self._shadow, self._memory.live, None

    async def rollback(self) -> None:
        if self._memory.old is None:
            raise StoreError("there is nothing to roll back to", hint="a rebuild keeps the old store")
        self._memory.live, self._memory.old = self._memory.old, None


@asynccontextmanager
async def running(config: Config, store: MemoryStore, **options: Any) -> AsyncIterator[Runtime]:
    """A consumer that is stopped, not killed, at the end."""
    runtime = Runtime(config, store, **{"exclusive": True, "counts": store, "check_seconds": 0.1, **options})
    task = asyncio.ensure_future(runtime.run())
    try:
        yield runtime
    finally:
        runtime.stop()
        await task


def rows(numbers: Iterable[int], text: str = "text") -> list[dict[str, Any]]:
    """Rows with these ids."""
    return [{"id": number, "text": f"{text} {number}"} for number in numbers]


def live(memory: Memory) -> int:
    """Live rows of all tables."""
    return sum(row[2] is not None for table in memory.live.rows.values() for row in table.values())


def sample(name: str, **labels: str) -> float | None:
    """A metric's value."""
    return REGISTRY.get_sample_value(name, labels)
