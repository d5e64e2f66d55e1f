"""The command on real servers: the whole path by hand, and one sentence with its remedy for every mistake."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from psycopg.conninfo import make_conninfo

from cdc.embedded import Endpoints
from cdc.embedded.folder import free_port
from cdc.migrations import migrate
from tests.command_line import CommandLine, free_ports
from tests.conftest import fresh_database
from tests.pipeline import settings
from tests.waiting import until

TABLE = "public.memories"
TEXT = {TABLE: {"text": "content", "version_column": "version_vector", "redis_key": "memory:{id}"}}


@pytest.fixture
def data(servers: Endpoints, database: str, tmp_path: Path) -> dict[str, Any]:
    """Settings for the canonical table in the module's database."""
    migrate(database)
    made = settings(servers, database, tmp_path, tables=TEXT, faiss={"metric": "cosine"}, **free_ports())
    with redis.Redis.from_url(made["redis"]["url"]) as client:
        client.flushdb()
    return made


@pytest.fixture
def command(data: dict[str, Any], tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path, data)


@pytest.fixture
def pipeline(command: CommandLine) -> Iterator[CommandLine]:
    """Reader, both consumers and the gateway as processes."""
    with ExitStack() as stack:
        for arguments in (("reader",), ("consume", "redis"), ("consume", "faiss"), ("gateway",)):
            stack.enter_context(command.running(*arguments))
        yield command


def execute(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    """On a connection of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


async def settled(command: CommandLine, rows: int) -> None:
    """Both stores count that many rows, are past Kafka's marks, and everything is up."""

    def counted() -> bool:
        done = command.run("status", "--json")
        found = json.loads(done.stdout)
        stores = found["stores"].values()
        return found["up"] and all(store["rows"] == {TABLE: rows} and not store["offset_lag"] for store in stores)

    await until(counted, f"{rows} rows in both stores")


async def test_the_whole_path(pipeline: CommandLine, data: dict[str, Any]) -> None:
    dsn = data["postgres"]["dsn"]
    execute(dsn, "TRUNCATE memories")
    keys = execute(
        dsn,
        "INSERT INTO memories (user_id, content) SELECT 'ann', 'text ' || n FROM generate_series(1, 20) n RETURNING id",
    )
    await settled(pipeline, 20)
    key = str(keys[0][0])

    seen = pipeline.json("status")
    assert seen["source"]["rows"] == {TABLE: 20}
    assert seen["source"]["slot"]["active"]
    for store in seen["stores"].values():
        assert store["offset_lag"] == 0
        assert store["lag_seconds"] is not None
        assert store["lag_bytes"] is not None

    found = pipeline.json("versions", key)
    assert found["postgres"]["exists"]
    assert {store["state"] for store in found["stores"].values()} == {"in step"}
    assert found["stores"]["redis"]["vector"] == found["stores"]["faiss"]["vector"] == found["postgres"]["vector"]

    with redis.Redis.from_url(data["redis"]["url"]) as client:  # a loss that nobody told us of
        client.delete(f"memory:{key}")
        client.hset(f"memory:{keys[1][0]}", "content", "forged")
    assert pipeline.json("versions", key, code=1)["stores"]["redis"]["state"].startswith("behind")
    different = pipeline.json("verify", code=1)
    by_store = {comparison["store"]: comparison for comparison in different["comparisons"]}
    assert by_store["redis"]["missing"] == [json.dumps({"id": key}, separators=(",", ":"))]
    assert by_store["redis"]["different"] == [json.dumps({"id": str(keys[1][0])}, separators=(",", ":"))]
    assert by_store["faiss"]["equal"]
    repaired = pipeline.json("verify", "--repair")
    assert repaired["equal"]
    [before] = repaired["repaired"]
    assert (before["counts"]["missing"], before["counts"]["different"]) == (1, 1)
    assert pipeline.json("verify", "--sample", "5")["comparisons"][0]["sampled"]

    for store in ("redis", "faiss"):
        report = pipeline.json("rebuild", store)
        assert report["swapped"]
        assert report["rows"] == {TABLE: {"rebuilt": 20, "topics": 20, "replaced": 20}}
    execute(dsn, "DELETE FROM memories WHERE id = (SELECT min(id::text) FROM memories)::uuid")
    await settled(pipeline, 19)
    assert pipeline.json("rebuild", "redis", "--rollback")["rolled_back"]
    await settled(pipeline, 19)  # what came since is applied to the old store too
    assert pipeline.json("snapshot", TABLE) == {"table": TABLE, "rows": 19, "done": True}
    assert pipeline.json("verify")["equal"]
    assert "in use by a reader" in pipeline.refusal("resync")


async def test_what_is_down_is_shown_as_down(command: CommandLine) -> None:
    seen = command.json("status", code=1)
    assert not seen["up"]
    assert seen["source"]["up"]
    assert not seen["stores"]["faiss"]["up"]
    assert "rows" not in seen["stores"]["faiss"]
    for process in seen["processes"].values():
        assert not process["up"]
        assert process["reason"]
    assert "down" in command.run("status").stdout


async def test_a_heartbeat_topic_that_is_not_there_is_told_at_once(pipeline: CommandLine, data: dict[str, Any]) -> None:
    """To ask the end of a topic that does not exist takes the client 40 s; the rest of the answer is not kept back."""
    execute(data["postgres"]["dsn"], "INSERT INTO memories (user_id, content) VALUES ('ann', 'told')")
    await settled(pipeline, len(execute(data["postgres"]["dsn"], "SELECT id FROM memories")))
    data["kafka"]["prefix"] = "notmade"
    began = time.monotonic()
    done = CommandLine(pipeline.folder, data).run("status", "--json")
    print(f"answered in {time.monotonic() - began:.1f} s, the start of Python included")
    seen = json.loads(done.stdout)["stores"]["redis"]
    assert seen["up"]
    assert seen["fresh_until"] is None
    assert "notmade.cdc.heartbeat does not exist yet, or may not be read" in seen["reason"]


def test_a_wrong_value_in_the_config(data: dict[str, Any], tmp_path: Path) -> None:
    data["faiss"]["metrik"] = "cosine"
    command = CommandLine(tmp_path, data)
    assert "faiss.metrik" in command.refusal("doctor")
    done = command.run("doctor", "--json")
    assert json.loads(done.stdout)["error"].count("faiss.metrik") == 1
    assert json.loads(done.stdout)["hint"]


def test_no_config_at_all(command: CommandLine, tmp_path: Path) -> None:
    command.path.unlink()
    assert "there is no config file" in command.refusal("status")


def test_a_misspelt_command(command: CommandLine) -> None:
    done = command.run("statsu")
    assert done.returncode == 2
    assert "statsu" in done.stderr


def test_options_may_stand_behind_the_command(command: CommandLine) -> None:
    elsewhere = command.folder / "elsewhere.toml"
    assert str(elsewhere) in command.refusal("status", "--config", str(elsewhere))


@pytest.mark.parametrize("arguments", [("verify",), ("versions", "x"), ("snapshot", TABLE), ("resync",)])
def test_a_wrong_password(servers: Endpoints, data: dict[str, Any], tmp_path: Path, arguments: tuple[str, ...]) -> None:
    data["postgres"]["dsn"] = make_conninfo(servers.postgres_dsn, password="wrong")
    said = CommandLine(tmp_path, data).refusal(*arguments)
    assert "password authentication failed" in said
    assert "PASSWORD_FILE" in said
    assert "wrong" not in said


@pytest.mark.parametrize("arguments", [("verify",), ("rebuild", "redis"), ("resync",)])
def test_an_unreachable_broker(data: dict[str, Any], tmp_path: Path, arguments: tuple[str, ...]) -> None:
    data["kafka"]["bootstrap"] = f"127.0.0.1:{free_port(set())}"
    said = CommandLine(tmp_path, data).refusal(*arguments)
    assert "cannot be reached" in said
    assert "[kafka] bootstrap" in said


def test_a_missing_plugin(servers: Endpoints, pg18: str, data: dict[str, Any], tmp_path: Path) -> None:
    with fresh_database(pg18) as dsn:
        migrate(dsn)
        data["postgres"] |= {"dsn": dsn, "plugin": "wal2json"}
        said = CommandLine(tmp_path, data).refusal("reader")
    assert "wal2json" in said
    assert "pgoutput" in said


def test_a_table_without_a_key(data: dict[str, Any], tmp_path: Path) -> None:
    execute(data["postgres"]["dsn"], "CREATE TABLE IF NOT EXISTS keyless (text text)")
    data["postgres"]["tables"] = ["public.keyless"]
    said = CommandLine(tmp_path, data).refusal("reader")
    assert "keyless" in said
    assert "ALTER TABLE" in said


def test_a_table_that_does_not_travel(command: CommandLine) -> None:
    assert TABLE in command.refusal("snapshot", "public.nothing")


def test_a_port_that_is_taken(command: CommandLine, data: dict[str, Any]) -> None:
    port = data["metrics"]["redis_port"]
    with socket.create_server(("127.0.0.1", port)):
        said = command.refusal("consume", "redis")
    assert f"cannot listen on 127.0.0.1:{port}" in said
