"""The processes of `cdc up`: what ends is told and started again, and stopping leaves nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from cdc.config import load
from cdc.embedded import Endpoints
from cdc.embedded.folder import Folder
from cdc.errors import PreconditionError
from cdc.migrations import migrate
from cdc.pipeline import Pipeline
from tests.command_line import free_ports, toml_of
from tests.pipeline import settings

TEXT = {"public.memories": {"text": "content"}}


@pytest.fixture
def path(servers: Endpoints, database: str, tmp_path: Path) -> Path:
    """A configuration with free ports."""
    migrate(database)
    data = settings(servers, database, tmp_path, tables=TEXT, faiss={"metric": "cosine"}, **free_ports())
    with redis.Redis.from_url(data["redis"]["url"]) as client:
        client.flushdb()
    path = tmp_path / "cdc.toml"
    path.write_text(toml_of(data))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path / "up")
    made.lock()
    yield made
    made.unlock()


def test_a_process_that_ends_is_started_again(path: Path, folder: Folder) -> None:
    told: list[str] = []
    with Pipeline(folder, path, load(path), told.append) as pipeline:
        first = {process.name: process.pid for process in pipeline.processes}
        victim = first["consumer-redis"]
        assert victim
        os.kill(victim, signal.SIGKILL)
        pipeline.tend()
        assert told == ["the Redis consumer ended: killed by SIGKILL; starting it again in 1 s"]
        pipeline.tend()
        assert told[1:] == ["the Redis consumer runs again"]
        now = {process.name: process.pid for process in pipeline.processes}
        assert now["consumer-redis"] not in (None, victim)
        assert [now[name] for name in ("reader", "consumer-faiss")] == [first[n] for n in ("reader", "consumer-faiss")]
    assert not any(process.running for process in pipeline.processes)


def test_one_that_does_not_start_stops_all(path: Path, folder: Folder) -> None:
    config = load(path)
    path.write_text(path.read_text().replace("cosine", "cosinus"))
    pipeline = Pipeline(folder, path, config, print)
    with pytest.raises(PreconditionError, match=r"faiss\.metric"):
        pipeline.__enter__()
    assert not any(process.running for process in pipeline.processes)
