"""The connection to one Redis database, and our scripts on it. Every error of the client leaves here as one of ours."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from cdc.config import Redis as Settings
from cdc.errors import ConfigError
from consumers.redis.failures import translate

CLOSED = "the handler is closed"  # uvloop's RuntimeError for writing to a transport that broke; asyncio passes it over
RETRIES = 1  # at once, for a connection that went stale; waiting longer is the runtime's part

SCRIPTS = (
    "apply", "begin", "open", "mark", "rekey", "walk", "foreign", "swap", "digest", "stamp", "recency", "strangers",
    "lower",
)  # fmt: skip
_SOURCES = {name: files(__package__).joinpath(f"{name}.lua").read_text() for name in SCRIPTS}
_HASHES = {name: hashlib.sha1(source.encode()).hexdigest() for name, source in _SOURCES.items()}  # how EVALSHA names it


class Link:
    """Lazy: nothing is sent before the first command. `database` None takes the url's."""

    def __init__(self, settings: Settings, database: int | None = None) -> None:
        try:
            pool: ConnectionPool = ConnectionPool.from_url(
                settings.url,
                **settings.client_options(),
                protocol=2,
                socket_connect_timeout=settings.connect_seconds,
                socket_timeout=None,  # _guarded instead: the client's own costs a task a call
                retry=Retry(NoBackoff(), RETRIES),
            )
        except ValueError:  # its words may hold a piece of the url's password
            raise ConfigError(
                "[redis] url is no address", hint="write it like redis://host:6379/0, or rediss:// for TLS"
            ) from None
        self._reply_seconds = settings.reply_seconds
        options = pool.connection_kwargs
        if database is not None:
            options["db"] = database
        self.database = int(options.get("db") or 0)
        self.where = f"{options.get('path') or '{}:{}'.format(options.get('host'), options.get('port', 6379))}"
        self.where += f"/{self.database}"
        self._redis: Any = Redis.from_pool(pool)

    async def run(self, script: str, keys: Sequence[str | bytes], args: Sequence[Any]) -> Any:
        """The reply of one of our scripts, loaded where the server lacks it. Raises ConnectError, StoreError."""
        async with self._guarded():
            try:
                return await self._redis.execute_command("EVALSHA", _HASHES[script], len(keys), *keys, *args)
            except NoScriptError:
                return await self._redis.execute_command("EVAL", _SOURCES[script], len(keys), *keys, *args)

    async def command(self, *words: Any) -> Any:
        """One command's reply. Raises ConnectError, StoreError."""
        async with self._guarded():
            return await self._redis.execute_command(*words)

    async def pipeline(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Replies of many commands in one round trip; an error of a single one stands in its place, translated."""
        pipe = self._redis.pipeline(transaction=False)
        for words in commands:
            pipe.execute_command(*words)
        async with self._guarded():
            replies = await pipe.execute(raise_on_error=False)
        return [translate(reply, self.where) if isinstance(reply, RedisError) else reply for reply in replies]

    @asynccontextmanager
    async def _guarded(self) -> AsyncIterator[None]:
        """Bounds the time of a call and translates its errors."""
        try:
            async with asyncio.timeout(self._reply_seconds):
                yield
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            raise translate(error, self.where) from error
        except RuntimeError as error:
            if CLOSED not in str(error):
                raise
            raise translate(ConnectionResetError("the connection broke"), self.where) from error

    async def is_cluster(self) -> bool:
        """Whether the server is a node of a Redis Cluster."""
        info = await self.command("INFO", "cluster")
        return bool(info["cluster_enabled"])  # redis-py parses INFO

    async def close(self) -> None:
        """Closes every connection; a server that is gone is no error."""
        try:
            await self._redis.aclose()
        except (RedisError, OSError):
            return  # a connection that broke is closed
