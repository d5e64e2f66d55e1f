"""Servers and processes that come and go one by one, with a database of 1,095 rows."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import redis
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cdc.embedded import Endpoints, Servers
from cdc.migrations import migrate
from tests.command_line import CommandLine, free_ports
from tests.conftest import drop_slots
from tests.gateway_rig import TABLES, counted, insert
from tests.pipeline import settings
from tests.waiting import until

ROWS = 1095  # as many as the database held while a health page said 0
PATIENCE_SECONDS = 180.0  # only so that a broken test ends: four processes start on two cores that others use too
SERVERS = ("postgres", "kafka", "redis")
PROCESSES = {
    "reader": ("reader",), "memory": ("consume", "redis"), "index": ("consume", "faiss"), "gateway": ("gateway",),
}  # fmt: skip


class Town:
    """A database, topics and stores of its own on servers that nobody else uses."""

    def __init__(self, servers: Servers, endpoints: Endpoints, folder: Path) -> None:
        self._servers, self._endpoints = servers, endpoints
        self._stack = ExitStack()
        self.data = _settings(endpoints, folder)
        self.command = CommandLine(folder, self.data)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.keys: list[str] = []
        self.gateway: httpx.AsyncClient
        self.redis = redis.Redis.from_url(self.data["redis"]["url"])
        self.redis.flushall()

    @asynccontextmanager
    async def asked(self) -> AsyncIterator[Town]:
        """With a client of its gateway, in the caller's loop."""
        address = f"http://127.0.0.1:{self.data['gateway']['port']}"
        async with httpx.AsyncClient(base_url=address, timeout=30, trust_env=False) as self.gateway:
            yield self

    def fill(self) -> None:
        """The tables and their rows."""
        migrate(self.data["postgres"]["dsn"])
        self.keys = insert(self.data, ROWS)

    async def up(self, server: str) -> None:
        await asyncio.to_thread(self._servers[server].start)

    async def down(self, server: str) -> None:
        await asyncio.to_thread(self._servers[server].stop)

    def start(self, *names: str) -> None:
        """Processes."""
        for name in names:
            self.processes[name] = self._stack.enter_context(self.command.running(*PROCESSES[name]))

    async def whole(self) -> None:
        """Starts what does not run, and returns once everything is in step."""
        for server in SERVERS:
            await self.up(server)
        self.start(*(name for name in PROCESSES if name not in self.processes))
        await self.in_step()

    async def in_step(self) -> None:
        """Returns once all rows are everywhere."""
        await self.answers()
        await until(lambda: counted(self.gateway, ROWS), f"{ROWS} rows everywhere", PATIENCE_SECONDS)

    def kill(self, *names: str) -> None:
        """SIGKILL."""
        for name in names:
            self.processes[name].kill()
            self.processes.pop(name).wait()

    def assert_alive(self) -> None:
        for name, process in self.processes.items():
            assert process.poll() is None, f"{name} ended: {self.log(name)[-3:]}"

    def log(self, name: str) -> list[dict[str, Any]]:
        """What the process has said so far."""
        path = self.command.folder / f"{'-'.join(PROCESSES[name])}.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.startswith("{")]

    async def answers(self) -> None:
        """Returns once the gateway does."""

        async def alive() -> bool:
            try:
                return (await self.gateway.get("/health")).is_success
            except httpx.TransportError:
                return False

        await until(alive, "the gateway answers", PATIENCE_SECONDS)

    def close(self) -> None:
        """Ends the processes; the servers run afterwards."""
        self._stack.close()
        for server in SERVERS:
            self._servers[server].start()
        self.redis.close()
        with psycopg.connect(self._endpoints.postgres_dsn, autocommit=True) as connection:
            drop_slots(connection, self.data["kafka"]["prefix"])


def _settings(endpoints: Endpoints, folder: Path) -> dict[str, Any]:
    """Names of its own, and a new database."""
    name = f"t{secrets.token_hex(4)}"
    with psycopg.connect(endpoints.postgres_dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    dsn = make_conninfo(endpoints.postgres_dsn, dbname=name)
    data = settings(endpoints, dsn, folder, tables=TABLES, faiss={"metric": "cosine"}, **free_ports())
    data["gateway"] |= {"stats_seconds": 0}
    data["kafka"] |= {"prefix": name}
    data["postgres"] |= {"snapshot_chunk_rows": ROWS}
    return data


def servers(folder: Path) -> Iterator[tuple[Servers, Endpoints]]:
    """To be stopped and started one by one; removed at the end."""
    made = Servers(folder, report=print)
    try:
        yield made, made.start()
    finally:
        made.erase()
