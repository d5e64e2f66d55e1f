"""The whole path in one event loop, on the session's real servers: a reader and both consumers over one database.

Waiting is always for a condition: `caught_up` emits a marker behind everything committed and waits until both stores
say that they have applied it. What they hold then is compared in comparison.py.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import redis

from cdc.config import Config, parse
from cdc.embedded import Endpoints
from cdc.kafka.progress import Progress
from cdc.position import decode_position
from cdc.reader import Reader
from cdc.source.connection import PINNED
from cdc.source.events import MESSAGE_PREFIX as PREFIX
from cdc.source.heartbeat import HEARTBEAT
from consumers.faiss import FaissStore
from consumers.redis import RedisStore
from consumers.runtime import Runtime
from tests.command_line import peak_bytes, toml_of
from tests.waiting import LIMIT_SECONDS, until

DATABASES = 16  # Redis' default number of logical databases
_numbers = itertools.count()
DIMENSION = 8

# As the canonical table, in small: a key, texts that go to TOAST, numbers with odd values, a vector.
COLUMNS = {
    "id": "integer", "who": "text", "content": "text", "score": "double precision", "amount": "numeric",
    "tags": "jsonb", "embedding": "real[]",
}  # fmt: skip
MEMORIES = (
    "CREATE TABLE memories (id integer PRIMARY KEY, who text, content text, score double precision, amount numeric,"
    " tags jsonb, embedding real[]); ALTER TABLE memories ALTER content SET STORAGE EXTERNAL"
)


def settings(servers: Endpoints, dsn: str, folder: Path, **changes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data for `parse`: names of its own for slot, topics and folder; `changes` override by section."""
    token = secrets.token_hex(4)
    address = urlsplit(servers.redis_url)
    made: dict[str, Any] = {
        "source_name": f"source_{token}",
        "postgres": {
            "dsn": dsn, "slot": f"slot_{token}", "publication": f"publication_{token}", "plugin": servers.plugin,
            "tables": ["public.memories"], "heartbeat_seconds": 0.2, "status_seconds": 0.5, "snapshot_chunk_rows": 7,
        },
        "kafka": {"bootstrap": servers.kafka_bootstrap, "prefix": f"t{token}", "partitions": 3},
        "redis": {"url": address._replace(path=f"/{next(_numbers) % DATABASES}").geturl(), "check_seconds": 1},
        "faiss": {"path": str(folder / token), "table": "public.memories", "metric": "l2", "snapshot_seconds": 3600},
        "tables": {"public.memories": {"vector": "embedding"}},
        "metrics": {"reader_port": 0},
    }  # fmt: skip
    for section, values in changes.items():
        made[section] = {**made.get(section, {}), **values} if isinstance(values, Mapping) else values
    return made


def config_of(servers: Endpoints, dsn: str, folder: Path, **changes: Mapping[str, Any]) -> Config:
    """A validated config; its Redis database is emptied."""
    config = parse(settings(servers, dsn, folder, **changes))
    with redis.Redis.from_url(config.redis.url) as client:
        client.flushdb()
    return config


def source(config: Config) -> psycopg.Connection:
    """An autocommit connection that prints values as the reader sees them."""
    return psycopg.connect(config.postgres.dsn, autocommit=True, options=PINNED)


class ReaderTask:
    """A reader in this loop. `crash` ends it without any goodbye but what the operating system would do."""

    def __init__(self, config: Config) -> None:
        self.reader = Reader(config, gap_seconds=0)
        self.task = asyncio.ensure_future(self.reader.run())

    async def crash(self) -> None:
        """Cancelled wherever it stands."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def stop(self) -> None:
        """Raises what the reader raised."""
        self.reader.stop()
        await self.task


@asynccontextmanager
async def reading(config: Config) -> AsyncIterator[ReaderTask]:
    """A reader alone."""
    running = ReaderTask(config)
    try:
        yield running
    finally:
        if not running.task.done():
            await running.stop()
        elif not running.task.cancelled():
            running.task.result()


class CommandChild:
    """`cdc ARGUMENTS` as a process of its own, to be killed, stopped and measured; `environment` is added to ours."""

    def __init__(
        self, data: Mapping[str, Any], folder: Path, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        path = folder / f"{secrets.token_hex(4)}.toml"
        path.write_text(toml_of(data))
        self.log = path.with_suffix(".log")
        command = [sys.executable, "-m", "cdc.cli", "--config", str(path), *arguments]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **(environment or {})})

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LIMIT_SECONDS)

    def peak_bytes(self) -> int:
        """The most memory it ever held."""
        return peak_bytes(self.process.pid)


class Running:
    """A reader and both consumers. `config` is what the test looks with, and theirs unless they have their own."""

    def __init__(self, config: Config, *, reading: Config | None = None, consuming: Config | None = None) -> None:
        self.config, self._reading = config, reading or config
        config = consuming or config
        self.memory, self.index = RedisStore(config), FaissStore(config)
        self.consumers = {
            "redis": Runtime(config, self.memory, exclusive=False, tables=config.postgres.tables, check_seconds=1),
            "faiss": Runtime(config, self.index, exclusive=True, tables=(config.faiss.table,), check_seconds=1),
        }
        self._tasks = [asyncio.ensure_future(consumer.run()) for consumer in self.consumers.values()]
        self.source = ReaderTask(self._reading)

    async def restart(self) -> None:
        """Crashes the reader and starts another."""
        await self.source.crash()
        self.source = ReaderTask(self._reading)

    async def caught_up(self, seconds: float = LIMIT_SECONDS) -> None:
        """Returns once both stores hold everything that is committed now, snapshots included."""
        await until(self._snapshots_done, "the snapshots", seconds)
        target = await asyncio.to_thread(emit, self.config, HEARTBEAT)
        await until(lambda: self._reached(target), "stores fresh up to the marker", seconds)

    async def _snapshots_done(self) -> bool:
        self._check()
        progress = self.source.reader.progress
        return bool(progress and progress.snapshots) and all(state.done for state in progress.snapshots.values())

    def _reached(self, lsn: int) -> bool:
        self._check()
        places = [consumer.freshness.position for consumer in self.consumers.values()]
        return all(place and decode_position(place).commit_lsn >= lsn for place in places)

    def _check(self) -> None:
        for task in (*self._tasks, self.source.task):
            if task.done():
                task.result()
                raise AssertionError("a part of the pipeline ended by itself")

    async def close(self) -> None:
        """Stops all; raises what any part raised."""
        for consumer in self.consumers.values():
            consumer.stop()
        self.source.reader.stop()
        results = await asyncio.gather(self.source.task, *self._tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result


@asynccontextmanager
async def pipeline(
    config: Config, *, reading: Config | None = None, consuming: Config | None = None
) -> AsyncIterator[Running]:
    """The whole path, stopped afterwards."""
    running = Running(config, reading=reading, consuming=consuming)
    try:
        yield running
    finally:
        await running.close()


def emit(config: Config, content: bytes) -> int:
    """Writes a logical message of ours; its LSN, which is below that of its commit."""
    with source(config) as connection:
        query = "SELECT (pg_logical_emit_message(true, %s, %s) - '0/0')::bigint"
        row = connection.execute(query, [PREFIX, content.decode()]).fetchone()
    assert row is not None
    return int(row[0])


async def written(config: Config, running: ReaderTask, what: Callable[[Progress], bool] | None = None) -> None:
    """Returns once the topics hold everything committed now, or once progress says `what`."""
    target = await asyncio.to_thread(emit, config, HEARTBEAT) if what is None else 0

    def reached() -> bool:
        if running.task.done():
            running.task.result()
            raise AssertionError("the reader ended by itself")
        progress = running.reader.progress
        return progress is not None and (what(progress) if what else progress.commit_lsn >= target)

    await until(reached, "progress")
