"""What topic, Redis and index hold, as texts of one form. PostgreSQL is the oracle: a SELECT says what is right.

Nothing here waits: a store is looked at as it is, see `caught_up` in pipeline.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
import redis
from aiokafka import TopicPartition
from psycopg import sql

from cdc.config import Config
from cdc.envelope import MARKER_KEYS, decode_floats
from cdc.kafka.offsets import open_consumer
from consumers.faiss import FaissStore
from tests.pipeline import COLUMNS, Running, source
from tests.type_samples import text_of


class Record(NamedTuple):
    """One committed record of a topic."""

    partition: int
    offset: int
    key: bytes
    value: bytes | None
    headers: dict[str, bytes]

    @property
    def position(self) -> bytes:
        return self.headers["cdc.pos"]

    @property
    def event(self) -> dict[str, Any]:
        """The decoded value; numbers stay text, so that nothing is rounded."""
        assert self.value is not None
        return json.loads(self.value, parse_float=str)


async def dump(config: Config, topic: str) -> list[Record]:
    """All committed records, partition by partition in offset order."""
    records: list[Record] = []
    async with open_consumer(config.kafka) as consumer:
        places = [TopicPartition(topic, number) for number in range(config.kafka.partitions)]
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        while [place for place in places if await consumer.position(place) < ends[place]]:
            for place, messages in (await consumer.getmany(timeout_ms=100)).items():
                records += [Record(place.partition, m.offset, m.key, m.value, dict(m.headers)) for m in messages]
    return sorted(records)


async def table_dump(config: Config, table: str = "memories") -> list[Record]:
    """The topic of a table of schema public."""
    return await dump(config, config.kafka.table_topic("public", table))


def assert_in_order(records: Iterable[Record]) -> None:
    """Positions strictly grow in each partition, so nothing is there twice; a tombstone shares its delete's."""
    last: dict[int, Record] = {}
    for record in records:
        assert follows(last.get(record.partition), record), (last.get(record.partition), record)
        last[record.partition] = record


def follows(before: Record | None, record: Record) -> bool:
    """Whether a partition may go on with `record`."""
    if before is None:
        return record.value is not None
    tombstone = record.value is None and before.value is not None and before.key == record.key
    return record.position == before.position if tombstone else record.position > before.position


def compacted(records: Iterable[Record]) -> dict[bytes, Record]:
    """What remains of a topic: each key's last record, less what is deleted or below a marker."""
    held: dict[bytes, Record] = {}
    for record in records:
        compact(held, record)
    return held


def compact(held: dict[bytes, Record], record: Record) -> None:
    """The next record of a topic, by what `compacted` says."""
    if record.key in MARKER_KEYS:
        below = record.event["source"]["below"].encode()
        inside = [key for key, other in held.items() if other.partition == record.partition]
        for key in inside:
            if held[key].position < below:
                del held[key]
    elif record.value is None:
        held.pop(record.key, None)
    elif record.event["op"] != "d":
        held[record.key] = record


Texts = dict[str, str | None]


def rows_of(config: Config, table: str = "memories", columns: Mapping[str, str] = COLUMNS) -> list[Texts]:
    """The table's rows as PostgreSQL's text, less a vector's, which is its float32 bytes in hex."""
    chosen = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in columns)
    with source(config) as connection:
        found = connection.execute(sql.SQL("SELECT {} FROM {}").format(chosen, sql.Identifier(table))).fetchall()
    kinds = columns.values()
    return [
        dict(zip(columns, (_oracle(text, kind) for text, kind in zip(row, kinds, strict=True)), strict=True))
        for row in found
    ]


def _oracle(text: str | None, kind: str) -> str | None:
    if text is None or kind != "real[]":
        return text
    return np.array(text.strip("{}").split(","), dtype="<f4").tobytes().hex()


def topic_rows(records: Iterable[Record], columns: Mapping[str, str] = COLUMNS) -> list[Texts]:
    """The rows of a compacted topic in the same form."""
    return texts_of(compacted(records).values(), columns)


def texts_of(records: Iterable[Record], columns: Mapping[str, str] = COLUMNS) -> list[Texts]:
    """The rows of upserts."""
    rows = []
    for record in records:
        after = msgspec.json.decode(record.value or b"", type=dict[str, msgspec.Raw])["after"]
        fragments = msgspec.json.decode(after, type=dict[str, msgspec.Raw])
        rows.append({name: _wire_text(bytes(fragments[name]), kind) for name, kind in columns.items()})
    return rows


def _wire_text(fragment: bytes, kind: str) -> str | None:
    if kind == "real[]" and fragment != b"null":
        return decode_floats(json.loads(fragment)).tobytes().hex()
    return text_of(fragment, kind)


def by_id(rows: Iterable[Texts]) -> dict[str | None, Texts]:
    """Rows by their column `id`."""
    return {row["id"]: row for row in rows}


def redis_rows(config: Config, columns: Mapping[str, str] = COLUMNS, table: str = "memories") -> list[Texts]:
    """What Redis holds of a table with the key `id`, in the same form."""
    rows = []
    with redis.Redis.from_url(config.redis.url) as client:
        for key in client.scan_iter(f"{table}:*", count=1000):
            fields = {name.decode(): value for name, value in client.hgetall(key).items()}
            row = {name: _field(fields.get(name), kind) for name, kind in columns.items()}
            assert key == f"{table}:{row['id']}".encode()
            rows.append(row)
    return rows


def _field(value: bytes | None, kind: str) -> str | None:
    if value is None:
        return None
    return value.hex() if kind == "real[]" else value.decode()


async def index_rows(store: FaissStore) -> dict[str | None, str | None]:
    """id → vector in hex, for what the index holds."""
    held = {}
    async for key, _position in store.scan("public", "memories"):
        vector = await store.vector_of(key)
        held[str(json.loads(key)["id"])] = None if vector is None else vector.astype("<f4").tobytes().hex()
    return held


async def assert_equal_everywhere(running: Running) -> list[Record]:
    """The topic, Redis and the index hold exactly what PostgreSQL holds; returns the topic's records."""
    config = running.config
    expected = by_id(await asyncio.to_thread(rows_of, config))
    records = await table_dump(config)
    assert by_id(topic_rows(records)) == expected, "the topic differs"
    assert by_id(await asyncio.to_thread(redis_rows, config)) == expected, "Redis differs"
    vectors = {key: row["embedding"] for key, row in expected.items()}
    assert await index_rows(running.index) == vectors, "the index differs"
    return records
