"""Records, batches and configurations for tests of the Redis store; no server is needed for any of them."""

from __future__ import annotations

from typing import Any

import msgspec

from cdc.config import Config, parse
from cdc.position import Position
from consumers.store import Batch, Record

TOPIC = "memories.public.memories"
VECTOR = b'{"memories":5}'
TABLES: dict[str, Any] = {
    "public.memories": {"redis_key": "memory:{id}", "user": "user_id", "recency": "created_at", "vector": "embedding"}
}


def config(url: str, tables: dict[str, Any] | None = None, **redis: Any) -> Config:
    return parse(
        {
            "postgres": {"dsn": "dbname=unused"},
            "kafka": {"bootstrap": "unused:9092"},
            "redis": {"url": url, **redis},
            "tables": TABLES if tables is None else tables,
        }
    )


def at(lsn: int, ordinal: int = 1, epoch: int = 1) -> bytes:
    return Position(epoch, lsn, ordinal).encode()


def change(key: object, lsn: int, row: bytes | dict[str, Any] | None, *, ts_us: int = 1_700_000_000_000_000) -> Record:
    """A record as the reader writes it; `row` None is a delete's event."""
    after = b"null" if row is None else row if isinstance(row, bytes) else msgspec.json.encode(row)
    op = b"d" if row is None else b"u"
    value = (
        b'{"before":null,"after":%b,"source":{"version":"1","name":"memories","db":"d","schema":"public",'
        b'"table":"memories","ts_us":%d,"epoch":1,"lsn":%d,"ordinal":1,"snapshot":"false"},"op":"%b","ts_ms":1}'
    ) % (after, ts_us, lsn, op)
    return Record(encoded_key(key), value, at(lsn), VECTOR, 0, lsn)


def encoded_key(key: object) -> bytes:
    return msgspec.json.encode(key if isinstance(key, dict) else {"id": key})


def tombstone(key: object, lsn: int) -> Record:
    return Record(encoded_key(key), None, at(lsn), VECTOR, 0, lsn)


def batch(*records: Record, table: str = "memories", offset: int = 1) -> Batch:
    return Batch("public", table, f"memories.public.{table}", records, {(f"memories.public.{table}", 0): offset})


def memory(key: object, **columns: Any) -> dict[str, Any]:
    return {"id": key, "user_id": "ann", "created_at": "2025-01-01T00:00:00Z", **columns}
