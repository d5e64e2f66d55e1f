"""Redis: reachable, version, persistence, eviction, memory, and whether the database is ours alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cdc.config import Config
from cdc.config import Redis as Settings
from cdc.doctor.finding import Finding, error, ok, warning

AREA = "redis"
OLDEST = (6, 0)  # what the scripts need
ANSWER_SECONDS = 5.0
FULL_SHARE = 0.8  # of maxmemory: a rebuild needs a second copy beside the first


def check(config: Config) -> Iterator[Finding]:
    """Raises nothing: a server that is away is a finding."""
    settings = config.redis
    try:
        client: Any = redis.Redis.from_url(
            settings.url,
            **settings.client_options(),
            socket_connect_timeout=ANSWER_SECONDS,
            socket_timeout=ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError:  # its words may hold a piece of the url's password
        yield error(AREA, "[redis] url is no address", "write it like redis://host:6379/0")
        return
    with closing(client):
        try:
            yield from _server(client, settings)
        except redis.exceptions.RedisError as failed:
            yield _refused(failed, settings)


def _refused(failed: Exception, settings: Settings) -> Finding:
    where = settings.where
    text = str(failed).rstrip(".")
    if isinstance(failed, redis.exceptions.AuthenticationError) or "WRONGPASS" in text or "NOAUTH" in text:
        return error(AREA, f"Redis at {where} refuses the password", "correct [redis] url or password (PASSWORD_FILE)")
    if "NOPERM" in text:
        return error(AREA, f"Redis at {where} does not allow us: {text}", "give the user +@all ~* in its ACL")
    return error(AREA, f"Redis at {where} cannot be used: {text}", "start it, or correct [redis] url")


def _server(client: Any, settings: Settings) -> Iterator[Finding]:
    info: dict[str, Any] = client.info()
    version = str(info["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        yield error(AREA, f"Redis {version} is too old", "upgrade it to 6.0 or newer")
    else:
        yield ok(AREA, f"Redis {version} answers")
    if info.get("role") not in (None, "master"):
        yield error(AREA, "this Redis is a replica and takes no writes", "point [redis] url to its master")
    if info.get("cluster_enabled") and "{" not in settings.namespace:
        yield error(
            AREA,
            "Redis is a cluster, and [redis] namespace has no hash tag",
            "set namespace = '{m}:cdc:' and begin each redis_key with '{{m}}:'",
        )
    yield from _persistence(info)
    yield from _memory(info)
    yield from _others(client, settings)


def _persistence(info: dict[str, Any]) -> Iterator[Finding]:
    if info.get("aof_enabled"):
        yield ok(AREA, "it keeps its data over a restart (appendonly)")
    else:
        yield warning(
            AREA,
            "appendonly is off: after a restart everything since the last dump is replayed from Kafka",
            "set `appendonly yes` (CONFIG SET appendonly yes; CONFIG REWRITE)",
        )


def _memory(info: dict[str, Any]) -> Iterator[Finding]:
    limit, used, policy = int(info.get("maxmemory") or 0), int(info["used_memory"]), info.get("maxmemory_policy")
    if limit and policy != "noeviction":
        yield error(
            AREA,
            f"maxmemory-policy is {policy}: records would vanish without a trace",
            "CONFIG SET maxmemory-policy noeviction; CONFIG REWRITE",
        )
    else:
        yield ok(AREA, "it evicts nothing")
    if limit and used > FULL_SHARE * limit:
        yield warning(
            AREA,
            f"{used >> 20} of {limit >> 20} MiB of memory are used, and a rebuild needs room for a second copy",
            "raise maxmemory, or set ttl_seconds for a table",
        )


def _others(client: Any, settings: Settings) -> Iterator[Finding]:
    keys, ours = client.dbsize(), client.exists(f"{settings.namespace}state")
    if keys and not ours:
        yield warning(
            AREA,
            f"the database holds {keys} keys that are not ours; a rebuild swaps whole databases and would refuse",
            "give the store a database of its own ([redis] url = …/N), and leave the next one to rebuilds",
        )
    else:
        yield ok(AREA, "the database is ours" if ours else "the database is empty")
