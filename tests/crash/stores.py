"""A table's topic without a PostgreSQL: what goes out is written down, and that is the oracle of both stores."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import redis
from aiokafka.admin import AIOKafkaAdminClient

from cdc.config import Config, parse
from cdc.envelope import decode_floats, encode_floats
from consumers.faiss import FaissStore
from consumers.redis import RedisStore
from consumers.replay import span_ends
from consumers.runtime import Runtime
from consumers.store import Offsets, Partition
from tests.comparison import Record, index_rows, table_dump
from tests.topic_writer import TopicWriter
from tests.waiting import until

TABLE = "public.memories"
NAME = ("public", "memories")
DIMENSION = 8
STABLE = 20  # rows written first and never changed: what a reader must find at any moment


def settings(bootstrap: str, redis_url: str, folder: Path, **changes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data for a config file with names of its own; ports are free ones."""
    token = secrets.token_hex(4)
    made: dict[str, Any] = {
        "source_name": f"source_{token}",
        "postgres": {"dsn": "postgresql://unused", "tables": [TABLE]},
        "kafka": {"bootstrap": bootstrap, "prefix": f"t{token}", "partitions": 3},
        "redis": {"url": redis_url, "check_seconds": 0.5, "batch": 20},
        "faiss": {
            "path": str(folder / token), "table": TABLE, "metric": "l2",
            "snapshot_seconds": 0.3, "snapshot_records": 50,
        },
        "tables": {TABLE: {"vector": "embedding"}},
        "metrics": {"reader_port": 0, "redis_port": 0, "faiss_port": 0},
        "index": {"port": 0},
    }  # fmt: skip
    return {section: {**values, **changes[section]} if section in changes else values
            for section, values in made.items()}  # fmt: skip


def database(url: str, number: int) -> str:
    """The address of another logical database of a Redis."""
    return urlsplit(url)._replace(path=f"/{number}").geturl()


class Table:
    """The topic of one table, and the rows that are in it by now."""

    def __init__(self, data: Mapping[str, Any], writer: TopicWriter, chance: random.Random) -> None:
        self.data = data
        self.config = parse(dict(data))
        self._writer = writer
        self._chance = chance
        self._next = 0
        self.rows: dict[int, dict[str, Any]] = {}
        self.spoilt: set[bytes] = set()  # keys

    async def insert(self, number: int) -> None:
        """One transaction of new rows."""
        ids = range(self._next, self._next + number)
        self._next += number
        await self._put(ids, "c")

    async def update(self, number: int) -> None:
        """One of changed ones."""
        await self._put(self._some(number), "u")

    async def delete(self, number: int) -> None:
        """One of deletes."""
        ids = self._some(number)
        if ids:
            await self._writer.delete(TABLE, ids)
            for row in ids:
                del self.rows[row]

    async def spoil(self, number: int) -> None:
        """A row whose vector no store can hold."""
        await self._writer.put(TABLE, [{**self.rows.pop(number), "embedding": "f32:?"}], "u")
        self.spoilt.add(b'{"id":%d}' % number)

    async def change(self, size: int = 60) -> None:
        """Any of the first three, of up to `size` rows."""
        kind = self._chance.choices((self.insert, self.update, self.delete), (3, 4, 1))[0]
        await kind(self._chance.randint(1, size))

    async def ends(self) -> dict[Partition, int]:
        """Where each partition of the topic ends now."""
        return dict(await span_ends(self.config, [self.config.kafka.table_topic(*NAME)]))

    async def heartbeat(self) -> int:
        """What the reader says beside the data; its time in microseconds."""
        return await self._writer.heartbeat()

    def _some(self, number: int) -> list[int]:
        changing = sorted(set(self.rows) - set(range(STABLE)))
        return self._chance.sample(changing, min(number, len(changing)))

    async def _put(self, ids: Iterable[int], op: str) -> None:
        rows = [self._row(number) for number in ids]
        if rows:
            await self._writer.put(TABLE, rows, op)
            self.rows.update((row["id"], row) for row in rows)

    def _row(self, number: int) -> dict[str, Any]:
        vector = np.array([self._chance.gauss(0, 1) for _ in range(DIMENSION)], dtype="<f4")
        return {"id": number, "content": self._chance.randbytes(8).hex(), "embedding": encode_floats(vector)}

    # what the stores have to hold

    def texts(self) -> dict[str, dict[str, bytes]]:
        """id → fields, as Redis holds them."""
        return {
            str(number): {"id": b"%d" % number, "content": row["content"].encode(), "embedding": raw(row)}
            for number, row in self.rows.items()
        }

    def vectors(self) -> dict[str, str]:
        """id → vector in hex, as the index holds them."""
        return {str(number): raw(row).hex() for number, row in self.rows.items()}


def raw(row: Mapping[str, Any]) -> bytes:
    """A row's vector, little-endian float32."""
    return decode_floats(row["embedding"]).astype("<f4").tobytes()


@asynccontextmanager
async def table(data: Mapping[str, Any], chance: random.Random) -> AsyncIterator[Table]:
    """A new topic with the stable rows in it."""
    async with TopicWriter(parse(dict(data))) as writer:
        await writer.create(TABLE, partitions=3)
        made = Table(data, writer, chance)
        await made.insert(STABLE)
        yield made


class Consumer:
    """One store's consumer in this loop: what a restarted process does."""

    def __init__(self, config: Config, kind: str) -> None:
        self.store: Any = RedisStore(config) if kind == "redis" else FaissStore(config)
        self.runtime = Runtime(
            config, self.store, exclusive=kind == "faiss", counts=self.store, tables=(TABLE,), check_seconds=0.5
        )
        self.task = asyncio.ensure_future(self.runtime.run())

    async def killed(self) -> None:
        """Cancelled where it stands; what the operating system would do is done."""
        self.task.cancel()
        await asyncio.wait({self.task})

    def check(self) -> None:
        """Raises what ended it."""
        if self.task.done():
            self.task.result()
            raise AssertionError("the consumer ended by itself")

    async def caught_up(self, made: Table) -> None:
        """Returns once it stands at the topic's end."""
        ends = await made.ends()

        def reached() -> bool:
            self.check()
            return self.runtime.partitions.reached == ends

        await until(reached, "the end of the topic")


@asynccontextmanager
async def consuming(config: Config, kind: str) -> AsyncIterator[Consumer]:
    """Stopped, not killed, at the end; raises what it raised."""
    consumer = Consumer(config, kind)
    try:
        yield consumer
    finally:
        consumer.runtime.stop()
        await consumer.task


def redis_rows(config: Config) -> dict[str, dict[str, bytes]]:
    """id → fields without ours, read by a bare client."""
    found = {}
    with redis.Redis.from_url(config.redis.url) as client:
        keys = list(client.scan_iter("memories:*", count=1000))
        pipe = client.pipeline(transaction=False)
        for key in keys:
            pipe.hgetall(key)
        for key, held in zip(keys, pipe.execute(), strict=True):
            fields = {name.decode(): value for name, value in held.items()}
            found[key.decode().partition(":")[2]] = {n: v for n, v in fields.items() if not n.startswith("_")}
    return found


async def equal(made: Table, store: Any) -> bool:
    """Whether the store holds exactly the rows of the oracle."""
    if isinstance(store, RedisStore):
        return await asyncio.to_thread(redis_rows, made.config) == made.texts()
    return store.content is not None and await index_rows(store) == made.vectors()


async def becomes_equal(made: Table, consumer: Consumer) -> None:
    """Waits for it: after a loss or a swap the consumer has to notice first."""

    async def done() -> bool:
        consumer.check()
        return await equal(made, consumer.store)

    await until(done, "a store equal to its topic")


async def assert_nothing_ahead(made: Table, kind: str, *, refused: bool = False) -> Offsets:
    """What the store's offsets claim is there, and the group's are not beyond them; returns the store's.

    `refused`: spoilt rows may be passed over, because their letters are written."""
    records = await table_dump(made.config)
    store: Any = RedisStore(made.config) if kind == "redis" else FaissStore(made.config)
    try:
        offsets = await store.open()
        claimed = newest(records, offsets, made.config.kafka.table_topic(*NAME))
        versions = await store.versions(*NAME, list(claimed))
    finally:
        await store.close()
    for (key, position), version in zip(claimed.items(), versions, strict=True):
        if refused and key in made.spoilt:
            continue
        assert version is not None, f"{key!r} is claimed and not held"
        assert version.position >= position, f"{key!r} is claimed at {position!r} and held at {version.position!r}"
    group = await committed(made.config, kind)
    assert all(offset <= offsets.get(place, 0) for place, offset in group.items()), (group, offsets)
    return dict(offsets)


async def assert_complete(made: Table, offsets: Offsets) -> None:
    """Every record is below the offsets, which are in the topic; marks that end Kafka's transactions may be beyond."""
    topic, ends = made.config.kafka.table_topic(*NAME), await made.ends()
    assert all(offset <= ends[place] for place, offset in offsets.items()), (offsets, ends)
    left = [
        record for record in await table_dump(made.config) if record.offset >= offsets.get((topic, record.partition), 0)
    ]
    assert not left, (offsets, ends)


def newest(records: Iterable[Record], offsets: Offsets, topic: str) -> dict[bytes, bytes]:
    """Key → newest position among the records below the offsets."""
    found: dict[bytes, bytes] = {}
    for record in records:
        if record.offset < offsets.get((topic, record.partition), 0):
            found[record.key] = max(found.get(record.key, b""), record.position)
    return found


async def committed(config: Config, kind: str) -> dict[Partition, int]:
    """The group's offsets."""
    admin = AIOKafkaAdminClient(**config.kafka.client_options())
    try:
        await admin.start()
        found = await admin.list_consumer_group_offsets(f"cdc-{kind}-{config.kafka.prefix}")
    finally:
        await admin.close()
    return {tuple(partition): held.offset for partition, held in found.items() if held.offset >= 0}


async def ended(child: Any, meanwhile: Callable[[], Any]) -> int:
    """Works on until the child has ended; its return code."""

    async def over() -> bool:
        if child.process.poll() is None:
            await meanwhile()
        return child.process.poll() is not None

    await until(over, f"the end of a process; its log: {child.log}")
    return int(child.process.returncode)
