"""The servers of `cdc up`: they come back with their data, end with their parent, and say what is wrong."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from cdc.embedded import Endpoints, Servers, stop_running
from cdc.embedded.folder import HOST, PORTS, Folder, is_free
from cdc.embedded.identity import Identity
from cdc.errors import PreconditionError

END_SECONDS = 60.0  # only so that a broken test ends
USUAL_PORTS = (5432, 9092, 6379)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Servers]]:
    """Servers in this test's folder, erased afterwards."""
    made: list[Servers] = []

    def build(**options: object) -> Servers:
        made.append(Servers(tmp_path / "data", **options))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for servers in made:
        servers.erase()


@pytest.fixture
def child(make: Callable[..., Servers], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`python -m cdc.embedded` in this test's folder, waited for until the servers answer."""
    started: list[subprocess.Popen[str]] = []

    def start(*names: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "cdc.embedded", str(tmp_path / "data"), *names]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["provider"]
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    make()  # which erases what they left


def running(data: Path) -> list[Identity]:
    """The servers that the pid files of a folder name, with all their processes."""
    found = []
    for path in sorted((data / "run").glob("*.pid")):
        identity = Identity.read(path)
        if identity is not None and path.stem != "owner":
            found += [identity, *identity.descendants()]
    return found


async def add_topic(bootstrap: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic("kept", 1, 1)])
    finally:
        await admin.close()


async def topics(bootstrap: str) -> list[str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        return list(await admin.list_topics())
    finally:
        await admin.close()


def write(endpoints: Endpoints) -> None:
    with psycopg.connect(endpoints.postgres_dsn) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
    redis.Redis.from_url(endpoints.redis_url).set("kept", 7)
    asyncio.run(add_topic(endpoints.kafka_bootstrap))


def assert_kept(endpoints: Endpoints) -> None:
    with psycopg.connect(endpoints.postgres_dsn) as connection:
        assert connection.execute("SELECT number FROM kept").fetchone() == (7,)
    assert redis.Redis.from_url(endpoints.redis_url).get("kept") == b"7"
    assert "kept" in asyncio.run(topics(endpoints.kafka_bootstrap))


def test_second_start_has_the_same_data_and_ports(make: Callable[..., Servers]) -> None:
    servers = make()
    with servers as first:
        write(first)
        for name in ("postgres", "kafka", "redis"):
            servers[name].kill()
            assert not servers[name].running
            servers[name].start()
        assert_kept(first)
    with servers as second:
        assert second == first
        assert_kept(second)


def test_postgres_decodes_as_promised(servers: Endpoints, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SELECT pg_create_logical_replication_slot('embedded', %s)", [servers.plugin])
        settings = ("wal_level", "fsync", "server_encoding", "password_encryption", "max_slot_wal_keep_size")
        shown = [connection.execute(f"SHOW {name}").fetchone() for name in settings]
        assert shown == [("logical",), ("on",), ("UTF8",), ("scram-sha-256",), ("8GB",)]
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(database, password="wrong")


def test_sigterm_stops_all(child: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = child()
    servers = running(tmp_path / "data")
    assert len(servers) >= 3
    process.send_signal(signal.SIGTERM)
    assert process.wait(END_SECONDS) == 0
    assert not [server for server in servers if server.alive()]
    assert not list((tmp_path / "data" / "run").glob("*.pid"))
    assert "database system is shut down" in (tmp_path / "data" / "logs" / "postgres.log").read_text()


def test_down_stops_what_another_process_started(child: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = child("redis")
    servers = running(tmp_path / "data")
    assert stop_running(tmp_path / "data") == ["owner", "redis"]
    assert process.wait(END_SECONDS) == 0
    assert not [server for server in servers if server.alive()]
    assert stop_running(tmp_path / "data") == []


def test_nothing_is_left_of_a_killed_parent(
    child: Callable[..., subprocess.Popen[str]], make: Callable[..., Servers], tmp_path: Path
) -> None:
    process = child()
    servers = running(tmp_path / "data")
    assert len(servers) >= 3
    process.kill()
    assert all(server.wait(END_SECONDS) for server in servers)
    with make() as endpoints:  # and the folder is usable, also right after
        assert endpoints.kafka_bootstrap


def test_failing_start_names_its_log_and_stops_the_others(make: Callable[..., Servers], tmp_path: Path) -> None:
    servers = make(settings={"redis": {"appendfsync": "sometimes"}})
    with pytest.raises(PreconditionError) as caught:
        servers.start()
    assert str(tmp_path / "data" / "logs" / "redis.log") in str(caught.value)
    assert "appendfsync" in str(caught.value)
    assert running(tmp_path / "data") == []
    with make(only=["redis"]) as endpoints:  # the folder is free again
        assert endpoints.redis_url


def test_one_folder_serves_one_process(
    child: Callable[..., subprocess.Popen[str]], make: Callable[..., Servers]
) -> None:
    process = child("redis")
    with pytest.raises(PreconditionError, match=f"already run, started by process {process.pid}"):
        make(only=["redis"]).start()
    assert process.poll() is None


def test_recycled_pid_is_never_signalled(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.lock()
    folder.unlock()
    other = subprocess.Popen(["sleep", "1000"])
    try:
        identity = Identity.of(other.pid)
        assert identity is not None
        Identity(identity.pid, identity.started - 1, identity.boot).write(folder.pid_file("redis"))
        assert stop_running(tmp_path) == []
        assert other.poll() is None
        identity.write(folder.pid_file("redis"))
        assert stop_running(tmp_path) == ["redis"]
    finally:
        other.kill()
        other.wait()


def test_taken_port_is_left_alone(make: Callable[..., Servers]) -> None:
    servers = make(only=["redis"])
    with servers as first:
        port = int(first.redis_url.rsplit(":", 1)[1].split("/")[0])
    with socket.socket() as foreign:
        foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        foreign.bind((HOST, port))
        foreign.listen()
        with servers as second:
            assert second.redis_url != first.redis_url


def test_servers_on_the_usual_ports_are_never_touched(make: Callable[..., Servers]) -> None:
    assert not set(USUAL_PORTS) & set(PORTS)
    foreign = []
    for port in filter(is_free, USUAL_PORTS):
        foreign.append(socket.create_server((HOST, port)))
        foreign[-1].setblocking(False)
    with make() as endpoints:
        assert endpoints.kafka_bootstrap
    for listener in foreign:
        with listener, pytest.raises(BlockingIOError):
            listener.accept()  # nobody came


def test_wheels_serve_where_the_system_has_nothing(make: Callable[..., Servers]) -> None:
    with make(provider="wheels") as endpoints:
        assert all("PyPI wheel" in text for text in endpoints.provider.values())
        write(endpoints)
        assert_kept(endpoints)


def test_postgres_18_brings_vectors_and_pgoutput(pg18: str, database18: str) -> None:
    assert pg18 != database18
    with psycopg.connect(database18, autocommit=True) as connection:
        assert connection.info.server_version // 10000 == 18
        connection.execute("CREATE EXTENSION vector")
        assert connection.execute("SELECT '[1,2]'::vector <-> '[1,2]'").fetchone() == (0.0,)
        connection.execute("SELECT pg_create_logical_replication_slot('embedded', 'pgoutput')")


def test_system_programs_missing_are_named(monkeypatch: pytest.MonkeyPatch, make: Callable[..., Servers]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(PreconditionError, match=r"Redis .* is not installed → run `make setup`"):
        make(only=["redis"], provider="system").start()


def test_jars_missing_without_maven_are_named(
    monkeypatch: pytest.MonkeyPatch, make: Callable[..., Servers], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(PreconditionError, match="there is no mvn to fetch them"):
        make(only=["kafka"]).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root lends PostgreSQL another user")
def test_postgres_of_root_runs_as_somebody_else(make: Callable[..., Servers], tmp_path: Path) -> None:
    sentences: list[str] = []
    tmp_path.chmod(0o700)  # which that user cannot enter
    servers = make(only=["postgres"], report=sentences.append)
    with servers:
        pid = servers["postgres"].pid
        assert os.stat(f"/proc/{pid}").st_uid != 0
    assert any("cannot reach" in sentence for sentence in sentences)
    elsewhere = (tmp_path / "data" / "postgres").readlink()
    assert elsewhere.exists()
    servers.erase()
    assert not elsewhere.exists()
