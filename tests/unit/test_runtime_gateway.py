"""The index's service: typed answers, clear refusals, and an index that is down is down, never 0."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest

from cdc.config import parse
from cdc.errors import ConfigError, StoreError
from cdc.position import Position
from consumers.conditions import Where
from consumers.freshness import Freshness, Heartbeat
from consumers.gateway.index import Found, Parts, create_app
from consumers.gateway.models import Figures
from consumers.gateway.server import GatewayServer
from consumers.store import Version
from tests.memory_store import Memory, MemoryStore

AT = Position(1, 0x10, 0)
KEY = b'{"id":1}'


class Index:
    """Answers every question with the same record."""

    async def search(self, query: str | Sequence[float], k: int, where: Where | None) -> Sequence[Found]:
        if not isinstance(query, str) and len(query) != 2:
            raise StoreError(f"the query has {len(query)} dimensions, the index 2", hint="send 2")
        return [Found(KEY, 0.5, Version(AT.encode(), b'{"m":16}'))][:k]


class Counted(MemoryStore):
    """With figures, which an index has."""

    async def figures(self) -> Figures:
        records = await self.count("public", "memories")
        return Figures(
            table="public.memories", kind="flat", dimension=2, records=records, vectors=records, rejected=0,
            tombstones=0, dead=0, memory_bytes=8, disk_bytes=0,
        )  # fmt: skip


@pytest.fixture
def memory() -> Memory:
    found = Memory()
    found.live.rows["public", "memories"] = {KEY: (AT.encode(), b"{}", b"{}")}
    return found


@pytest.fixture
async def parts(memory: Memory) -> Parts:
    config = parse({"postgres": {"dsn": "dbname=x"}, "kafka": {"bootstrap": "x", "prefix": "m"}})
    freshness = Freshness(config, "unit")

    async def wait_for(position: bytes) -> None:
        await asyncio.Event().wait()

    return Parts(
        store=Counted(memory), index=Index(), freshness=freshness, objective_seconds=10.0, wait_for=wait_for,
        reached=lambda: {("m.public.memories", 0): 7},
    )  # fmt: skip


@pytest.fixture
async def client(parts: Parts) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(parts)), base_url="http://index") as client:
        yield client


async def test_search(client: httpx.AsyncClient) -> None:
    answer = await client.post("/search", json={"text": "hello", "k": 3})
    assert answer.status_code == 200
    [hit] = answer.json()["hits"]
    assert hit == {
        "topic_key": KEY.decode(), "key": {"id": 1}, "score": 0.5, "position": AT.encode().decode(),
        "vector": {"m": 16},
    }  # fmt: skip
    assert (await client.post("/search", json={"vector": [0.1, 0.2]})).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": ""},
        {"text": "a", "vector": [1.0]},
        {"text": "a", "k": 0},
        {"text": "a", "k": 10**6},
        {"vector": ["x"]},
        {"vector": []},
        {"text": "a", "typo": 1},
        {"text": "a", "min_position": "zz"},
        {"text": "a", "filter": {"": 1}},
        {"text": "a", "filter": {"x": {}}},
        {"text": "a", "filter": {"x": {"gte": None}}},
        {"text": "a", "filter": {"x": {"in": []}}},
        {"text": "a", "filter": {"x": {"in": [None]}}},
        {"text": "a", "filter": {"x": {"like": "a"}}},
        {"text": "a", "filter": {"x": ["a"]}},
        {"text": "a", "filter": {"x": "y" * 1001}},
        {"text": "a", "filter": {f"column {n}": 1 for n in range(17)}},
        {"vector": [1.0, 2.0, 3.0]},
    ],
)
async def test_malformed_questions_are_refused(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    assert (await client.post("/search", json=body)).status_code == 422


async def test_not_a_number_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "/search", content=b'{"vector": [NaN, 1.0]}', headers={"content-type": "application/json"}
    )
    assert answer.status_code == 422


async def test_a_position_that_does_not_come(client: httpx.AsyncClient) -> None:
    body = {"text": "a", "min_position": "f" * 32, "wait_seconds": 0.05}
    assert (await client.post("/search", json=body)).status_code == 412


async def test_stats_and_health(client: httpx.AsyncClient, parts: Parts, memory: Memory) -> None:
    stats = (await client.get("/stats")).json()
    assert stats["figures"]["records"] == 1
    assert stats["offsets"] == [["m.public.memories", 0, 7]]
    assert (await client.get("/health")).status_code == 503  # no heartbeat yet: nothing is known
    parts.freshness.heard(Heartbeat(10**17, AT.encode().decode(), {}))
    parts.freshness.reached({("m.public.memories", 0): 1}, lambda topic: True, set())
    healthy = await client.get("/health")
    assert (healthy.status_code, healthy.json()["status"]) == (200, "ok")
    memory.away = True
    stats = (await client.get("/stats")).json()
    assert (stats["up"], stats["figures"]) == (False, None)
    assert "away" in stats["reason"]
    assert (await client.get("/health")).json()["status"] == "down"
    assert (await client.post("/search", json={"vector": [1.0]})).status_code == 503


async def test_it_is_served_in_our_loop(parts: Parts) -> None:
    async with GatewayServer(create_app(parts), "127.0.0.1", 0) as server:
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"http://127.0.0.1:{server.port}/stats")
        assert answer.status_code == 200
        with pytest.raises(ConfigError, match="cannot listen"):
            GatewayServer(create_app(parts), "127.0.0.1", server.port)
