"""A PostgreSQL that says nothing: each blocking call ends, and only when the server is gone indeed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cdc.config import Postgres
from cdc.source.beside import beside
from cdc.source.connection import connect
from cdc.source.patience import PatientConnection
from tests.crash.proxy import HOST, Proxy
from tests.waiting import LIMIT_SECONDS, until, wait_until

SILENCE_SECONDS = 0.5


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    """Before the session's PostgreSQL."""
    own = conninfo_to_dict(database)
    with Proxy(str(own["host"]), int(str(own["port"]))) as made:
        yield made


@pytest.fixture
def reach(database: str, proxy: Proxy) -> Iterator[Callable[..., PatientConnection]]:
    """Connects by way of the proxy; keys of [postgres] as arguments."""
    made: list[PatientConnection] = []

    def by(**settings: float) -> PatientConnection:
        dsn = make_conninfo(database, host=HOST, port=proxy.port)
        keys = {"silence_seconds": SILENCE_SECONDS, "connect_timeout_seconds": 2, "tcp_timeout_seconds": 3, **settings}
        made.append(connect(Postgres.model_validate({"dsn": dsn, **keys})))
        return made[-1]

    yield by
    proxy.heal()
    for connection in made:
        connection.close()


@pytest.fixture
def ask() -> Iterator[Callable[[PatientConnection, str], Future[object]]]:
    """Runs a query in a thread of its own, so that one that never ends fails the test instead of stopping it."""
    with ThreadPoolExecutor() as pool:
        yield lambda connection, query: pool.submit(lambda: connection.execute(query).fetchone())


Reach = Callable[..., PatientConnection]
Ask = Callable[[PatientConnection, str], Future[object]]


def given_up(answer: Future[object], proxy: Proxy, words: str) -> None:
    """Returns once the call has ended with these words, while the fault lasts."""
    begun = time.monotonic()
    try:
        with pytest.raises(psycopg.OperationalError, match=words):
            answer.result(LIMIT_SECONDS)
        print(f"given up after {time.monotonic() - begun:.1f} s")
    finally:
        proxy.heal()


def test_a_black_hole_ends_a_call(reach: Reach, ask: Ask, proxy: Proxy) -> None:
    """Neither TCP nor the server can tell us."""
    connection = reach()
    proxy.black_hole()
    given_up(ask(connection, "SELECT 1"), proxy, "no answer within")
    assert connection.closed


def test_lost_packets_are_noticed_by_tcp(reach: Reach, ask: Ask, proxy: Proxy) -> None:
    """Without a question: what we sent is not acknowledged within tcp_timeout_seconds."""
    connection = reach(silence_seconds=1000.0)
    proxy.drop()
    given_up(ask(connection, "SELECT 1"), proxy, "timed out")


def test_a_connection_that_waits_for_an_answer_is_probed(reach: Reach, ask: Ask, proxy: Proxy) -> None:
    """The query arrived and the network breaks after it: only keepalives can notice."""
    connection = reach(silence_seconds=1000.0)
    sent = proxy.bytes_up
    answer = ask(connection, "SELECT pg_sleep(60)")
    wait_until(lambda: proxy.bytes_up > sent, "the query on its way")
    proxy.drop()
    given_up(answer, proxy, "timed out")


def test_a_long_query_is_not_given_up(reach: Reach, ask: Ask, proxy: Proxy) -> None:
    """The server, asked meanwhile over other connections, still works on it."""
    connection = reach()
    opened = proxy.opened
    assert ask(connection, "SELECT 'done' FROM pg_sleep(1.3)").result(LIMIT_SECONDS) == ("done",)
    assert proxy.opened >= opened + 2


def test_a_backend_that_is_gone_ends_a_call(reach: Reach, ask: Ask, proxy: Proxy) -> None:
    """The server answers, but knows nothing of this connection any more."""
    connection = reach()
    proxy.half_open("server")
    given_up(ask(connection, "SELECT 1"), proxy, "no answer within")


async def test_a_cancelled_call_ends_at_once(reach: Reach, proxy: Proxy) -> None:
    """Whoever is cancelled waits for its thread, and the thread for the server no longer."""
    connection = reach(silence_seconds=1000.0)
    sent = proxy.bytes_up
    call = asyncio.ensure_future(beside(connection.execute, "SELECT pg_sleep(30)"))
    await until(lambda: proxy.bytes_up > sent, "the query on its way")
    begun = time.monotonic()
    call.cancel()
    await asyncio.wait({call}, timeout=LIMIT_SECONDS / 4)
    assert call.cancelled(), "the thread still waits for the server"
    print(f"ended after {time.monotonic() - begun:.2f} s")
    assert connection.closed


def test_a_dsn_of_ones_own_time_outs(database: str) -> None:
    """They are not overridden."""
    dsn = make_conninfo(database, tcp_user_timeout=7777, keepalives_idle=77)
    found = conninfo_to_dict(Postgres.model_validate({"dsn": dsn}).conninfo())
    assert (found["tcp_user_timeout"], found["keepalives_idle"]) == ("7777", "77")
    assert found["keepalives_count"] == "3"
