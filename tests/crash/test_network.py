"""The network between the processes and each server breaks in every way: nothing is lost, doubled or out of order,
nothing hangs for ever, nobody storms, and all heals by itself.

PostgreSQL is written to all the while. `CDC_NETWORK_SECONDS` (default 2) is how long each server is away at least;
`CDC_NETWORK_FAULTS=all` goes through every fault of every server instead of the most telling ones.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from cdc.config import Config
from cdc.embedded import Endpoints
from tests.conftest import fresh_database
from tests.crash.network import Network, proxied
from tests.crash.outage import Pipeline, outage, retries, whole
from tests.crash.proxy import Proxy
from tests.pipeline import MEMORIES, config_of
from tests.waiting import until

AWAY_SECONDS = float(os.environ.get("CDC_NETWORK_SECONDS", "2"))
ALL = os.environ.get("CDC_NETWORK_FAULTS") == "all"
SENDER_TIMEOUT = "8s"  # wal_sender_timeout, usually 60 s; beyond what a start takes on a busy machine
MEGABIT = 125_000  # bytes a second
STORM = 15  # connections a second to one server; without back-off it is 180
PATIENCE = {
    "postgres": {"silence_seconds": 1, "connect_timeout_seconds": 2, "tcp_timeout_seconds": 3},
    "kafka": {"transaction_timeout_seconds": 2, "request_timeout_seconds": 3},
    "redis": {"connect_seconds": 1, "reply_seconds": 2},
}  # seconds, each far below its default

FAULTS: dict[str, Callable[[Proxy], None]] = {
    "cut": Proxy.cut,
    "reset": Proxy.reset,
    "black hole": Proxy.black_hole,
    "packets lost": Proxy.drop,
    "half-open, client dead": lambda proxy: proxy.half_open("client"),
    "half-open, server dead": lambda proxy: proxy.half_open("server"),
}
TELLING = {
    "postgres": ("cut", "black hole", "half-open, client dead"),
    "kafka": ("reset", "black hole", "half-open, server dead"),
    "redis": ("reset", "black hole"),
}


@pytest.fixture(scope="module")
def network(servers: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Proxies before the session's PostgreSQL and Redis and a Kafka of this module's own."""
    with proxied(servers, tmp_path_factory.mktemp("network")) as made:
        yield made


@pytest.fixture
def config(network: Network, tmp_path: Path) -> Iterator[Config]:
    """Of a fresh database with a short wal_sender_timeout, all by way of the proxies."""
    network.heal()
    with fresh_database(network.direct.postgres_dsn) as dsn:
        with psycopg.connect(dsn, autocommit=True) as connection:
            name = sql.Identifier(str(conninfo_to_dict(dsn)["dbname"]))
            setting = sql.SQL("ALTER DATABASE {} SET wal_sender_timeout = {}")
            connection.execute(setting.format(name, sql.Literal(SENDER_TIMEOUT)))
            connection.execute(MEMORIES)
        yield config_of(network.endpoints, network.reach(dsn), tmp_path, **PATIENCE)
        network.heal()


def faults(name: str) -> tuple[str, ...]:
    """Those to go through for a server."""
    return tuple(FAULTS) if ALL else TELLING[name]


def assert_no_storm(connections: int, seconds: float) -> None:
    """Those that were lost come back once, and from then on in growing distances."""
    assert connections <= STORM * max(1.0, seconds), f"{connections} connections in {seconds:.1f} s"


async def test_postgres_away(network: Network, config: Config) -> None:
    """The reader notices by itself, also when nothing is acknowledged or all is, and takes the slot again."""
    async with whole(network, config) as own:
        for fault in faults("postgres"):
            lag, retries, begun = own.age("redis"), own.retries(), time.monotonic()
            FAULTS[fault](network.postgres)
            noticed = lambda before=retries: own.retries() > before  # noqa: E731 - bound to this round
            opened = await outage(own, network.postgres, f"PostgreSQL, {fault}", noticed, AWAY_SECONDS)
            assert_no_storm(opened, time.monotonic() - begun)
            if not fault.startswith("half-open"):
                assert own.age("redis") > lag
                assert own.age("faiss") > lag
            network.heal()
            await own.whole(f"PostgreSQL, {fault}")


async def test_kafka_away(network: Network, config: Config) -> None:
    """Longer than transaction_timeout, so that the writer gives up."""
    async with whole(network, config) as own:
        for fault in faults("kafka"):
            retries, lag, begun = own.retries(), own.age("faiss"), time.monotonic()
            if fault == "black hole":
                await in_a_transaction(own, network.kafka)
            FAULTS[fault](network.kafka)
            if not fault.startswith("half-open"):
                given_up = lambda before=retries: own.retries() > before  # noqa: E731 - bound to this round
                opened = await outage(own, network.kafka, f"Kafka, {fault}", given_up, AWAY_SECONDS)
                await held(own)
                assert_no_storm(opened, time.monotonic() - begun)
                assert own.age("faiss") > lag
                network.heal()
            await own.whole(f"Kafka, {fault}")
            network.heal()


async def in_a_transaction(own: Pipeline, kafka: Proxy) -> None:
    """Returns when a part of a megabyte has gone out over a narrow line."""
    kafka.slow(MEGABIT)
    sent = kafka.bytes_up
    await own.write(rows=50, size=10_000)
    await until(lambda: kafka.bytes_up > sent + 100_000, "a transaction under way")


async def held(own: Pipeline) -> None:
    """One walsender, which hears from us again and again, while what it may forget stays the same."""
    first = await asyncio.to_thread(own.slot)
    assert first["active"]

    async def heard() -> bool:
        slot = await asyncio.to_thread(own.slot)
        assert slot["active"]
        assert slot["confirmed"] == first["confirmed"]
        return bool(slot["reply_time"] > first["reply_time"])

    await until(heard, "a status update")


async def test_redis_away(network: Network, config: Config) -> None:
    """Redis' lag grows, the index stays fresh, and the slot goes on."""
    async with whole(network, config) as own:
        for fault in faults("redis"):
            lag, begun = own.age("redis"), time.monotonic()
            FAULTS[fault](network.redis)
            opened = await outage(own, network.redis, f"Redis, {fault}", lambda: True, AWAY_SECONDS)
            assert_no_storm(opened, time.monotonic() - begun)
            if not fault.startswith("half-open"):
                assert own.age("redis") > lag
                await until(lambda: own.age("faiss") < own.age("redis") / 2, "the index fresh while Redis is away")
            network.heal()
            await own.whole(f"Redis, {fault}")


async def test_one_megabit(network: Network, config: Config) -> None:
    """A snapshot over a narrow line, in whose middle PostgreSQL falls silent: its workers give up and go on where they
    were. Then everything slow: all arrives, and nobody takes slow for gone."""
    beside = network.beside(config)
    with psycopg.connect(beside.postgres.dsn, autocommit=True) as connection:
        rows = "SELECT n, repeat(md5(n::text), 30) FROM generate_series(100000, 100300) n"
        connection.execute(f"INSERT INTO memories (id, content) {rows}")
    network.postgres.slow(MEGABIT)
    falling_silent = asyncio.ensure_future(in_a_snapshot(network, config))
    async with whole(network, config) as own:
        await falling_silent
        await own.whole("PostgreSQL, in a snapshot")
        for proxy in (network.postgres, network.kafka, network.redis):
            proxy.slow(MEGABIT)
        retries = own.retries()
        await own.write(rows=60, size=1_000)
        await own.whole("1 Mbit/s")
        assert own.retries() == retries


async def in_a_snapshot(network: Network, config: Config) -> None:
    """PostgreSQL falls silent when some of its rows have passed, until the reader has given up and tried again."""
    passed = network.postgres.bytes_down
    await until(lambda: network.postgres.bytes_down > passed + 150_000, "a snapshot under way")
    opened = network.postgres.opened
    network.postgres.black_hole()
    await until(lambda: network.postgres.opened > opened, "another connection")
    await until(lambda: retries(config) > 0, "a reader that has given up")
    network.heal()
