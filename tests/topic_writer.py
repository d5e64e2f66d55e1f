"""Writes topics as the reader does (see cdc/envelope.py), so that consumers can be tried without a PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from cdc.config import Config
from cdc.envelope import POSITION_HEADER, SWEEP_KEY, TRUNCATE_KEY, VERSION_HEADER
from cdc.position import Position
from cdc.version import encode_vector

Item = tuple[bytes, bytes | None, Position]


class _TakenBackError(Exception):
    """Ends a transaction."""


class TopicWriter:
    """One transactional producer; every call is one source transaction and one Kafka transaction."""

    def __init__(self, config: Config, *, transactional: bool = True) -> None:
        self._config = config
        self._lsn = 0x1000
        self._tables: dict[str, int] = {}
        self._transactional = transactional
        self.position = Position(1, 0, 0)

    async def __aenter__(self) -> TopicWriter:
        name = {"transactional_id": f"{self._config.kafka.prefix}-test"} if self._transactional else {}
        self._admin = AIOKafkaAdminClient(**self._config.kafka.client_options())
        self._producer = AIOKafkaProducer(
            **self._config.kafka.client_options(), **name, max_request_size=self._config.kafka.max_record_bytes
        )
        await self._admin.start()
        await self._producer.start()
        await self._create(self._config.kafka.heartbeat_topic, 1)
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._producer.stop()
        await self._admin.close()

    async def _create(self, topic: str, partitions: int) -> None:
        settings = {"cleanup.policy": "compact", "max.message.bytes": str(self._config.kafka.max_record_bytes)}
        answer = await self._admin.create_topics([NewTopic(topic, partitions, 1, topic_configs=settings)])
        assert all(code == 0 for _topic, code, *_rest in answer.topic_errors), answer
        while not await self._producer.partitions_for(topic):  # brokers learn of a topic a little later
            await self._producer.client.force_metadata_update()

    async def create(self, *tables: str, partitions: int = 2) -> None:
        """Topics of `schema.table` names."""
        for table in tables:
            await self._create(self._config.kafka.table_topic(*table.split(".")), partitions)
            self._tables[table] = partitions

    async def drop(self, table: str) -> None:
        """Deletes a table's topic."""
        await self._admin.delete_topics([self._config.kafka.table_topic(*table.split("."))])

    async def recreate(self, table: str) -> None:
        """Makes the dropped topic of a table again, once the brokers let it go."""
        topic = self._config.kafka.table_topic(*table.split("."))
        while topic in await self._admin.list_topics():
            await asyncio.sleep(0.02)
        await self._producer.client.force_metadata_update()
        await self._create(topic, self._tables[table])

    def next_position(self, ordinal: int = 0) -> Position:
        """A position after all others."""
        if ordinal == 0:
            self._lsn += 0x10
        self.position = Position(1, self._lsn, ordinal)
        return self.position

    def item(self, table: str, op: str, row: dict[str, Any], position: Position, **source: Any) -> Item:
        """Key, value, position of one record; the row's `id` is its key."""
        schema, name = table.split(".")
        key = json.dumps({"id": row["id"]}, separators=(",", ":")).encode()
        value = {
            "before": {"id": row["id"]} if op == "d" else None,
            "after": None if op == "d" else row,
            "source": {
                "name": self._config.source_name, "db": "test", "schema": schema, "table": name,
                "ts_us": time.time_ns() // 1000, "epoch": position.epoch, "lsn": position.commit_lsn,
                "ordinal": position.ordinal, "vector": {self._config.source_name: position.commit_lsn}, **source,
            },
            "op": op,
            "ts_ms": time.time_ns() // 1_000_000,
        }  # fmt: skip
        return key, json.dumps(value).encode(), position

    async def put(self, table: str, rows: Sequence[dict[str, Any]], op: str = "c") -> Position:
        """One transaction of rows; returns its last position."""
        first = self.next_position()
        items = [self.item(table, op, row, Position(1, first.commit_lsn, n)) for n, row in enumerate(rows)]
        self.position = items[-1][2]
        await self.write(table, items)
        return self.position

    async def delete(self, table: str, ids: Sequence[Any]) -> Position:
        """One transaction of deletes, each with its tombstone."""
        first = self.next_position()
        items: list[Item] = []
        for number, name in enumerate(ids):
            position = Position(1, first.commit_lsn, number)
            key, value, _position = self.item(table, "d", {"id": name}, position)
            items += [(key, value, position), (key, None, position)]
        await self.write(table, items)
        return first

    async def truncate(self, table: str, *, sweep: bool = False) -> Position:
        """A marker in every partition."""
        position = self.next_position()
        _key, value, _position = self.item(table, "t", {"id": 0}, position, below=position.encode().decode())
        for partition in range(self._tables[table]):
            await self.write(table, [(SWEEP_KEY if sweep else TRUNCATE_KEY, value, position)], partition)
        return position

    async def write(self, table: str, items: Sequence[Item], partition: int | None = None) -> None:
        """Any records, in one Kafka transaction."""
        await self._send(self._config.kafka.table_topic(*table.split(".")), items, partition)

    async def aborted(self, table: str, key: bytes) -> None:
        """A record that nobody who reads committed ones sees, in a transaction that is taken back."""
        with contextlib.suppress(_TakenBackError):
            async with self._producer.transaction():
                await self._producer.send_and_wait(self._config.kafka.table_topic(*table.split(".")), b"x", key=key)
                raise _TakenBackError

    async def foreign(self, table: str, key: bytes | None, value: bytes) -> None:
        """A record of another program, without headers."""
        async with self._scope():
            await self._producer.send_and_wait(self._config.kafka.table_topic(*table.split(".")), value, key=key)

    async def foreign_letter(self, key: bytes, value: bytes) -> None:
        """A record of another program among Redis' dead letters."""
        async with self._scope():
            topic = self._config.kafka.dead_letter_topic("redis")
            await self._producer.send_and_wait(topic, value, key=key, headers=[("cdc.dlq.kind", b"odd")])

    async def raw(self, table: str, key: bytes, value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> None:
        """A record with any headers at all."""
        async with self._scope():
            topic = self._config.kafka.table_topic(*table.split("."))
            await self._producer.send_and_wait(topic, value, key=key, headers=headers)

    async def _send(self, topic: str, items: Sequence[Item], partition: int | None) -> None:
        async with self._scope():
            for key, value, position in items:
                vector = encode_vector({self._config.source_name: position.commit_lsn})
                headers = [(POSITION_HEADER, position.encode()), (VERSION_HEADER, vector)]
                await self._producer.send(topic, value, key=key, headers=headers, partition=partition)
            await self._producer.flush()

    def _scope(self) -> Any:
        return self._producer.transaction() if self._transactional else _Nothing()

    async def heartbeat(self, ts_us: int | None = None, ends: dict[str, list[int]] | None = None) -> int:
        """Says that the topics hold everything until now; returns its time, microseconds since 1970."""
        stamp = ts_us or time.time_ns() // 1000
        ends = await self.ends() if ends is None else ends
        beat = {"ts_us": stamp, "position": self.position.encode().decode(), "ends": ends}
        async with self._scope():
            await self._producer.send_and_wait(
                self._config.kafka.heartbeat_topic, json.dumps(beat).encode(), key=self._config.source_name.encode()
            )
        return stamp

    async def ends(self) -> dict[str, list[int]]:
        """The end offsets of every table's partitions."""
        from consumers.replay import span_ends

        topics = [self._config.kafka.table_topic(*table.split(".")) for table in self._tables]
        found = await span_ends(self._config, topics)
        return {t: [end for _p, end in sorted((p, e) for (name, p), e in found.items() if name == t)] for t in topics}


class _Nothing:
    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *_error: object) -> None:
        return None
