"""What the gateway's tests start from: a database with the canonical table, and a Redis of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from cdc.embedded import Endpoints, Server, Servers
from cdc.migrations import migrate
from tests.command_line import CommandLine, free_ports
from tests.gateway_rig import TABLES
from tests.pipeline import settings


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Server]]:
    """A Redis of this module's own, to be stopped and emptied: its address, and itself."""
    own = Servers(tmp_path_factory.mktemp("redis"), only=("redis",), report=print)
    try:
        yield own.start().redis_url, own["redis"]
    finally:
        own.erase()


@pytest.fixture
def data(servers: Endpoints, dsn: str, own_redis: tuple[str, Server], tmp_path: Path) -> dict[str, Any]:
    """The canonical table, embedded by the hashing embedder; counts as they are, not as they were."""
    migrate(dsn)
    made = settings(servers, dsn, tmp_path, tables=TABLES, faiss={"metric": "cosine"}, **free_ports())
    made["redis"]["url"], _server = own_redis
    made["gateway"] |= {"stats_seconds": 0}
    with redis.Redis.from_url(made["redis"]["url"]) as client:
        client.flushall()
    return made


@pytest.fixture
def command(data: dict[str, Any], tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path, data)
