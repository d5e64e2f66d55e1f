"""Any process's clock jumps by an hour, forth and back, while everything runs: order holds, lag is never negative."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from cdc.config import parse
from cdc.embedded import Server, Servers
from cdc.embedded.kafka import Kafka
from cdc.embedded.postgres import Postgres
from cdc.embedded.redis import Redis
from tests.command_line import CommandLine, free_ports
from tests.comparison import assert_in_order, table_dump
from tests.crash.clocks import Clock, clocks
from tests.pipeline import MEMORIES, settings
from tests.waiting import until

HOUR = 3600
SERVERS: dict[str, tuple[type[Server], str]] = {
    "postgres": (Postgres, "postgres_dsn"),
    "kafka": (Kafka, "kafka_bootstrap"),
    "redis": (Redis, "redis_url"),
}
PROCESSES = {"reader": ("reader",), "consumer-redis": ("consume", "redis"), "consumer-faiss": ("consume", "faiss")}
PORTS = {"reader": "reader_port", "consumer-redis": "redis_port", "consumer-faiss": "faiss_port"}
WRITE = """
INSERT INTO memories (id, content, embedding)
SELECT n, 'new', array[n,0,0,0,0,0,0,1]::real[] FROM generate_series(1, 20) n
ON CONFLICT (id) DO UPDATE SET content = memories.content || '+';
DELETE FROM memories WHERE id = 1 + (SELECT count(*) FROM memories WHERE content LIKE '%+') % 20
"""


class Rig:
    """The pipeline as processes, each part with a clock of its own."""

    def __init__(self, data: dict[str, Any], folder: Path, times: dict[str, Clock]) -> None:
        self.data, self.clocks = data, times
        self.command = CommandLine(folder, data)

    def clock(self, name: str) -> float:
        """What a process of ours, or PostgreSQL, takes for the time (Unix seconds)."""
        if name == "postgres":
            with psycopg.connect(self.data["postgres"]["dsn"]) as connection:
                row = connection.execute("SELECT extract(epoch FROM clock_timestamp())").fetchone()
            assert row is not None
            return float(row[0])
        return self.sample(name, "cdc_clock_timestamp_seconds")

    def sample(self, process: str, name: str) -> float:
        """A metric without labels, or with one set of them."""
        port = self.data["metrics"][PORTS[process]]
        lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith((f"{name} ", f"{name}{{"))).split()[-1])

    def write(self) -> None:
        with psycopg.connect(self.data["postgres"]["dsn"], autocommit=True) as connection:
            for statement in WRITE.split(";"):
                connection.execute(statement)

    def equal(self) -> bool:
        """`cdc verify` finds no difference; it waits for the stores itself."""
        done = self.command.run("verify")
        print(done.stdout, done.stderr)
        return done.returncode == 0

    def lags_are_small(self) -> bool:
        """Those that `cdc status` tells. Until the next heartbeat, one of the time before the jump is an hour old, by
        the source's own clock; below zero none may ever be."""
        stores = json.loads(self.command.run("status", "--json").stdout)["stores"]
        lags = [store.get("lag_seconds") for store in stores.values()]
        print(f"lag {lags} s")
        assert all(lag is None or lag >= 0 for lag in lags), lags
        return all(lag is not None and lag < HOUR / 10 for lag in lags)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Own servers and processes, which hear of their clocks at their start."""
    folder = tmp_path_factory.mktemp("rig")
    with ExitStack() as stack:
        times = stack.enter_context(clocks(*SERVERS, *PROCESSES))
        found: dict[str, str] = {}
        for name, (kind, field) in SERVERS.items():
            server = Servers(tmp_path_factory.mktemp(name), only=(name,), report=print)
            stack.callback(server.erase)
            with times[name].of(kind):
                endpoints = server.start()
            found[field] = getattr(endpoints, field)
        endpoints = replace(endpoints, plugin="wal2json", **found)
        data = settings(endpoints, endpoints.postgres_dsn, folder, **free_ports())
        with psycopg.connect(data["postgres"]["dsn"], autocommit=True) as connection:
            connection.execute(MEMORIES)
        rig = Rig(data, folder, times)
        for name, arguments in PROCESSES.items():
            stack.enter_context(rig.command.running(*arguments, **times[name].environment))
        yield rig


@pytest.mark.parametrize("victim", [*SERVERS, *PROCESSES])
async def test_a_clock_that_jumps_by_an_hour(rig: Rig, victim: str) -> None:
    rig.write()
    await until(rig.equal, "the stores to be filled")
    for offset in (HOUR, -HOUR, 0):
        rig.clocks[victim].set(offset)
        if victim not in ("kafka", "redis"):  # the others do not tell their time
            other = "reader" if victim != "reader" else "postgres"
            await until(lambda: abs(rig.clock(victim) - rig.clock(other) - offset) < HOUR / 10, "the clock to jump")  # noqa: B023
        rig.write()
        await until(rig.equal, f"{victim} {offset:+d} s: the stores to be equal")
        await until(rig.lags_are_small, f"{victim} {offset:+d} s: a lag measured since")
    assert_in_order(await table_dump(parse(rig.data)))
