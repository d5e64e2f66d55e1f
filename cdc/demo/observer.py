"""The stores as any client sees them. Every number here is asked of the store at that moment."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, LiteralString

import httpx
import psycopg
from aiokafka import AIOKafkaConsumer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from cdc.config import Config
from cdc.demo.workload import Change
from cdc.errors import StoreError

TABLE = ("public", "memories")
ANEW_SECONDS = 0.2  # between two questions to the gateway
PATIENCE_SECONDS = 60.0  # far beyond any lag of a pipeline that works
ASK_SECONDS = 0.001  # between two questions whether a change has arrived: the resolution of what is measured
STORES = ("redis", "faiss")


@dataclass(frozen=True, slots=True)
class Look:
    """Rows by place and the stores' ages in seconds; None where the place could not be asked. `kafka` counts the
    offsets used in the table's topic; transaction marks are among them."""

    rows: Mapping[str, int | None]
    ages: Mapping[str, float | None]

    @property
    def equal(self) -> bool:
        """All stores hold as many rows as PostgreSQL."""
        return all(self.rows[store] == self.rows["postgresql"] for store in STORES)


class Observer:
    """Use as an async context manager."""

    def __init__(self, config: Config) -> None:
        self._config = config
        gateway, metrics = config.gateway, config.metrics
        self._gateway = f"http://{gateway.host}:{gateway.port}"
        ports = {"redis": metrics.redis_port, "faiss": metrics.faiss_port}
        self._metrics = {store: f"http://{metrics.host}:{port}/metrics" for store, port in ports.items()}
        self._fresh: dict[str, float] = {}
        self._http = httpx.AsyncClient(timeout=PATIENCE_SECONDS, trust_env=False)
        self._redis: Any = Redis.from_url(config.redis.url, decode_responses=True)
        self._kafka = AIOKafkaConsumer(**config.kafka.client_options())
        self._postgres: psycopg.AsyncConnection[Any] | None = None

    async def __aenter__(self) -> Observer:
        self._postgres = await psycopg.AsyncConnection.connect(self._config.postgres.conninfo(), autocommit=True)
        await self._kafka.start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._kafka.stop()
        if self._postgres is not None:
            await self._postgres.close()
        await self._redis.aclose()
        await self._http.aclose()

    async def look(self) -> Look:
        """All places at once."""
        source, log, stats, *ages = await asyncio.gather(
            self._value("SELECT count(*) FROM memories"), self._log(), self._stats(), *map(self._age, STORES)
        )
        return Look({"postgresql": source, "kafka": log, **stats}, dict(zip(STORES, ages, strict=True)))

    async def look_anew(self) -> Look:
        """The same, with counts younger than the call: the gateway keeps them for seconds. Raises StoreError."""
        begun, deadline = time.time(), time.perf_counter() + PATIENCE_SECONDS
        while not await self._counted_since(begun):
            if time.perf_counter() > deadline:
                raise StoreError("the gateway does not count anew", hint="see its log")
            await asyncio.sleep(ANEW_SECONDS)
        return await self.look()

    async def _counted_since(self, begun: float) -> bool:
        try:
            stores = await self._asked()
        except httpx.TransportError:
            return False
        return all((stores[name]["counted_at"] or 0) >= begun for name in STORES)

    async def row(self, key: str) -> dict[str, Any]:
        """One record as PostgreSQL has it."""
        return dict(await self._value("SELECT to_jsonb(m) FROM memories m WHERE id = %s", key))

    async def search(self, text: str, k: int = 10) -> list[dict[str, Any]]:
        """The gateway's hits. Raises StoreError with its answer when it is not 200."""
        answer = await self._http.post(f"{self._gateway}/search", json={"text": text, "k": k})
        if answer.status_code != 200:
            raise StoreError(f"the search answered {answer.status_code}: {answer.text}")
        return list(answer.json()["hits"])

    async def hash_of(self, key: str) -> dict[str, str]:
        """HGETALL memory:<key>."""
        return dict(await self._redis.hgetall(f"memory:{key}"))

    async def seen_in_redis(self, change: Change) -> float:
        """Returns the time (perf_counter) at which Redis held the change. Raises StoreError when it never does."""
        return await self._until(lambda: self._redis_has(change), change)

    async def seen_in_index(self, change: Change) -> float:
        """The same of the index, asked by a search for the row's text."""
        return await self._until(lambda: self._index_has(change), change)

    async def lacking(self, changes: Mapping[str, Change]) -> dict[str, Change]:
        """Those of the changes (by id) that Redis does not hold yet."""
        pipe = self._redis.pipeline(transaction=False)
        for key in changes:
            pipe.hget(f"memory:{key}", "_ver")
        held = await pipe.execute()
        return {key: changes[key] for key, vector in zip(changes, held, strict=True) if not _is(vector, changes[key])}

    async def _redis_has(self, change: Change) -> bool:
        return _is(await self._redis.hget(f"memory:{change.id}", "_ver"), change)

    async def _index_has(self, change: Change) -> bool:
        vectors = [hit["vector"] for hit in await self.search(change.content, 3) if hit["key"] == {"id": change.id}]
        return vectors == ([] if change.vector is None else [change.vector])

    async def _until(self, condition: Any, change: Change) -> float:
        deadline = time.perf_counter() + PATIENCE_SECONDS
        while not await condition():
            if time.perf_counter() > deadline:
                raise StoreError(f"memory {change.id} has not arrived within {PATIENCE_SECONDS:.0f} s")
            await asyncio.sleep(ASK_SECONDS)
        return time.perf_counter()

    async def _value(self, query: LiteralString, *values: str) -> Any:
        assert self._postgres is not None
        row = await (await self._postgres.execute(query, values)).fetchone()
        return row[0] if row else None

    async def _stats(self) -> dict[str, int | None]:
        """Rows by store, counted by the stores for the gateway."""
        try:
            stores = await self._asked()
        except httpx.TransportError:
            return dict.fromkeys(STORES)
        counts = {name: (stores[name]["tables"] or {}).get(".".join(TABLE)) for name in STORES}
        return {name: None if found is None else found["records"] for name, found in counts.items()}

    async def _asked(self) -> dict[str, Any]:
        """What the gateway says of each store."""
        return dict((await self._http.get(f"{self._gateway}/stats")).json()["stores"])

    async def _log(self) -> int:
        topic = self._config.kafka.table_topic(*TABLE)
        partitions = [TopicPartition(topic, number) for number in range(self._config.kafka.partitions)]
        if topic not in await self._kafka.topics():
            return 0
        return sum((await self._kafka.end_offsets(partitions)).values())

    async def _age(self, store: str) -> float | None:
        """Seconds since the source time the store is fresh up to; grows while its consumer is dead."""
        try:
            text = (await self._http.get(self._metrics[store])).text
        except httpx.TransportError:
            text = ""
        for family in text_string_to_metric_families(text):
            if family.name == "cdc_store_applied_timestamp_seconds" and family.samples:
                self._fresh[store] = family.samples[0].value
        return max(0.0, time.time() - self._fresh[store]) if store in self._fresh else None


def _is(vector: str | None, change: Change) -> bool:
    return (json.loads(vector) if vector else None) == change.vector
