"""Records, batches, configurations and stores for tests of the FAISS store; no server is needed for any of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cdc.config import Config, parse
from cdc.envelope import encode_floats
from cdc.position import Position
from consumers.faiss import FaissStore
from consumers.store import Batch, Record, Store

DIMENSION = 16
SEEN = ("public", "memories")
TOPIC = "t.public.memories"


def config(path: Path, *, table: dict[str, Any] | None = None, **faiss: Any) -> Config:
    """An index of public.memories, by default of its column `embedding`."""
    return parse(
        {
            "postgres": {"dsn": ""},
            "kafka": {"bootstrap": "none"},
            "tables": {"public.memories": table or {"vector": "embedding"}},
            "embedder": {"dimension": 64},
            "faiss": {"path": str(path), **faiss},
        }
    )


@asynccontextmanager
async def opened(settings: Config) -> AsyncIterator[FaissStore]:
    """A store, open and closed again."""
    store = FaissStore(settings)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def key_of(number: int) -> bytes:
    """A topic's key."""
    return b'{"id":%d}' % number


def position(lsn: int, ordinal: int = 0, epoch: int = 1) -> bytes:
    """The wire form."""
    return Position(epoch, lsn, ordinal).encode()


def record(
    key: int, lsn: int, value: Any = None, *, op: str = "c", offset: int = 0, column: str = "embedding"
) -> Record:
    """An insert or update whose column has this value: an array becomes its wire form."""
    wire = encode_floats(value) if isinstance(value, np.ndarray) else value
    event = {"before": None, "after": {"id": key, column: wire}, "source": {"x": 1}, "op": op, "ts_ms": 1}
    return Record(key_of(key), msgspec.json.encode(event), position(lsn), b'{"m":%d}' % lsn, 0, offset)


def deletion(key: int, lsn: int, offset: int = 0) -> Record:
    """A delete event."""
    event = {"before": {"id": key}, "after": None, "source": {"x": 1}, "op": "d", "ts_ms": 1}
    return Record(key_of(key), msgspec.json.encode(event), position(lsn), b'{"m":%d}' % lsn, 0, offset)


def tombstone(key: int, lsn: int, offset: int = 0) -> Record:
    """What follows a delete event, at the same position."""
    return Record(key_of(key), None, position(lsn), b'{"m":%d}' % lsn, 0, offset)


def batch(records: Sequence[Record], offset: int | None = None, table: str = "memories") -> Batch:
    """A batch of one partition; `offset` is reached, by default the one after the last record's."""
    reached = records[-1].offset + 1 if offset is None else offset
    return Batch("public", table, f"t.public.{table}", records, {(f"t.public.{table}", 0): reached})


def vectors(number: int, dimension: int, seed: int = 7) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Random ones."""
    return np.random.default_rng(seed).standard_normal((number, dimension), dtype=np.float32)


async def fill(store: Store, number: int, *, lsn: int = 1, seed: int = 7) -> Any:
    """Rows with random vectors, which are returned."""
    data = vectors(number, DIMENSION, seed)
    await store.apply(batch([record(n, lsn + n, data[n], offset=n) for n in range(number)]))
    return data


def normal(data: Any) -> Any:
    """Each of length 1."""
    return data / np.linalg.norm(data, axis=1, keepdims=True)


async def held(store: FaissStore) -> dict[bytes, bytes]:
    """Key → position."""
    return {key: where async for key, where in store.scan(*SEEN)}
