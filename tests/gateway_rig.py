"""A gateway before processes of the pipeline: started, asked, and what it says of counts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import psycopg

from tests.command_line import CommandLine
from tests.waiting import until

TABLE = "public.memories"
TABLES = {
    TABLE: {
        "text": "content", "version_column": "version_vector", "user": "user_id", "recency": "updated_at",
        "redis_key": "memory:{id}",
    }
}  # fmt: skip
PIPELINE = (("reader",), ("consume", "redis"), ("consume", "faiss"))


@asynccontextmanager
async def running(command: CommandLine, data: dict[str, Any], *processes: tuple[str, ...]) -> AsyncIterator[Any]:
    """These processes and the gateway; a client of it, once it answers."""
    async with AsyncExitStack() as stack:
        for arguments in (*processes, ("gateway",)):
            stack.enter_context(command.running(*arguments))
        address = f"http://127.0.0.1:{data['gateway']['port']}"
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=address, timeout=30, trust_env=False))
        await until(lambda: answers(client), "the gateway answers")
        yield client


async def answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health")).json()["status"] == "alive"
    except httpx.TransportError:
        return False


async def status(client: httpx.AsyncClient) -> dict[str, Any]:
    """GET /stats."""
    answer = await client.get("/stats")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def counted(client: httpx.AsyncClient, rows: int) -> bool:
    """Everything is in step at so many rows."""
    found = await status(client)
    places = [found["source"], *found["stores"].values()]
    counts = [place["tables"] and place["tables"][TABLE]["records"] for place in places]
    return bool(found["status"] == "ok" and counts == [rows] * 3)


async def degraded(client: httpx.AsyncClient) -> bool:
    return bool((await status(client))["status"] == "degraded")


def execute(data: dict[str, Any], statement: str, values: Any = None) -> list[Any]:
    """On a connection of its own."""
    with psycopg.connect(data["postgres"]["dsn"], autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []


def insert(data: dict[str, Any], number: int) -> list[str]:
    """Rows of two users; their ids."""
    rows = execute(
        data,
        "INSERT INTO memories (user_id, content) SELECT 'user ' || mod(n, 2), 'memory ' || n"
        " FROM generate_series(1, %s) n RETURNING id",
        [number],
    )
    return [str(key) for (key,) in rows]
