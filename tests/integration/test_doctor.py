"""The doctor on real servers: nothing to say about good ones, and each fault by name with what mends it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cdc.commands.store_checks import check_stores
from cdc.config import Config, parse
from cdc.doctor import Finding, examine
from cdc.embedded import Endpoints, Servers
from cdc.embedded.folder import free_port
from cdc.kafka.topics import ensure_topics
from cdc.migrations import migrate
from tests.conftest import fresh_database
from tests.pipeline import settings

TABLE = "public.memories"
TEXT = {TABLE: {"text": "content", "version_column": "version_vector", "redis_key": "memory:{id}"}}


@pytest.fixture
def data(servers: Endpoints, database: str, tmp_path: Path) -> dict[str, Any]:
    """Settings without a fault."""
    migrate(database)
    anywhere = {"gateway": {"port": 0}, "index": {"port": 0}}
    made = settings(servers, database, tmp_path, tables=TEXT, faiss={"metric": "cosine"}, **anywhere)
    made["metrics"] = {"reader_port": 0, "redis_port": 0, "faiss_port": 0, "gateway_port": 0}
    with redis.Redis.from_url(made["redis"]["url"]) as client:
        client.flushdb()
    return made


@pytest.fixture
def execute(database: str) -> Iterator[Any]:
    """Runs a statement in the module's database."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield lambda statement: connection.execute(statement)


async def findings(data: dict[str, Any] | Config) -> list[Finding]:
    """All that is not well."""
    config = data if isinstance(data, Config) else parse(data)
    found = [finding async for finding in examine(config)] + list(check_stores(config))
    assert all(finding.text and (finding.level == "ok" or finding.remedy) for finding in found)
    return [finding for finding in found if finding.level != "ok"]


async def only(data: dict[str, Any], text: str, remedy: str, level: str = "error") -> Finding:
    """The one finding there is."""
    found = await findings(data)
    assert [finding.level for finding in found] == [level], found
    assert text in found[0].text
    assert remedy in found[0].remedy
    return found[0]


@pytest.mark.parametrize("plugin", ["wal2json", "pgoutput"])
async def test_good_servers(data: dict[str, Any], plugin: str) -> None:
    data["postgres"]["plugin"] = plugin
    assert await findings(data) == []


async def test_nothing_is_left_behind(data: dict[str, Any], execute: Any) -> None:
    before = execute("SELECT slot_name FROM pg_replication_slots").fetchall()
    await findings(data)
    assert execute("SELECT slot_name FROM pg_replication_slots").fetchall() == before
    assert execute("SELECT count(*) FROM pg_publication").fetchone() == (0,)


async def test_everything_away(data: dict[str, Any]) -> None:
    port = free_port(set())
    data["postgres"]["dsn"] = f"host=127.0.0.1 port={port} user=x dbname=x"
    data["kafka"]["bootstrap"] = f"127.0.0.1:{port}"
    data["redis"]["url"] = f"redis://127.0.0.1:{port}/0"
    found = await findings(data)
    assert [(finding.area, finding.level) for finding in found] == [
        ("postgres", "error"), ("kafka", "error"), ("redis", "error"),
    ]  # fmt: skip


async def test_wrong_password(data: dict[str, Any]) -> None:
    data["postgres"]["dsn"] = make_conninfo(data["postgres"]["dsn"], password="wrong")
    await only(data, "password authentication failed", "PASSWORD_FILE")


async def test_plugin_that_is_not_there(pg18: str, data: dict[str, Any]) -> None:
    with fresh_database(pg18) as dsn:
        migrate(dsn)
        data["postgres"] |= {"dsn": dsn, "plugin": "wal2json"}
        found = await only(data, "wal2json", "plugin = 'pgoutput'")
        assert "cdc_doctor" not in found.text
        data["postgres"]["plugin"] = "pgoutput"
        assert await findings(data) == []


async def test_role_without_rights(data: dict[str, Any], execute: Any) -> None:
    role = f"plain_{free_port(set())}"
    execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'secret'").format(sql.Identifier(role)))
    try:
        data["postgres"]["dsn"] = make_conninfo(data["postgres"]["dsn"], user=role, password="secret")
        texts = {finding.text: finding.remedy for finding in await findings(data)}
        assert texts[f"role {role} may not replicate"] == f'ALTER ROLE "{role}" REPLICATION'
        reads = texts[f"role {role} may not read {TABLE}"]
        assert reads == f'GRANT SELECT ON "public"."memories" TO "{role}"'
        execute(sql.SQL("ALTER ROLE {} REPLICATION").format(sql.Identifier(role)))
        execute(reads)
        assert await findings(data) == []  # the remedies are what mends it
    finally:
        execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


async def test_table_that_is_not_there(data: dict[str, Any]) -> None:
    data["postgres"]["tables"] = [TABLE, "public.nothing_*"]
    await only(data, "there is no table public.nothing_*", "[postgres] tables")


async def test_table_without_a_key(data: dict[str, Any], execute: Any) -> None:
    execute("CREATE TABLE keyless (number integer)")
    try:
        data["postgres"]["tables"] = [TABLE, "public.keyless"]
        found = await findings(data)
        assert "keyless has no primary key" in found[0].text
        assert 'ALTER TABLE "public"."keyless"' in found[0].remedy
    finally:
        execute("DROP TABLE keyless")


async def test_replica_identity(data: dict[str, Any], execute: Any) -> None:
    execute("CREATE TABLE mute (id integer PRIMARY KEY); ALTER TABLE mute REPLICA IDENTITY NOTHING")
    try:
        data["postgres"]["tables"] = [TABLE, "public.mute"]
        found = await only(data, "do not tell which row they mean", "REPLICA IDENTITY FULL")
        execute(found.remedy)
        assert await findings(data) == []
    finally:
        execute("DROP TABLE mute")


async def test_wide_columns_without_full_identity(data: dict[str, Any], execute: Any) -> None:
    execute("CREATE TABLE wide (id integer PRIMARY KEY, body text)")
    try:
        data["postgres"]["tables"] = [TABLE, "public.wide"]
        found = await only(data, "(body)", "REPLICA IDENTITY FULL", level="warning")
        execute(found.remedy)
        assert await findings(data) == []
    finally:
        execute("DROP TABLE wide")


@pytest.mark.parametrize("role", ["user", "recency"])
async def test_column_that_is_not_there(data: dict[str, Any], role: str) -> None:
    data["tables"] = {TABLE: {**TEXT[TABLE], role: "nowhere"}}
    await only(data, f"{role} = 'nowhere': there is no such column", "name a column")


async def test_column_that_is_left_out(data: dict[str, Any]) -> None:
    data["tables"] = {TABLE: {**TEXT[TABLE], "exclude": ["content"]}}
    await only(data, "text = 'content': the column is left out", "keep it")


async def test_key_that_is_left_out(data: dict[str, Any]) -> None:
    data["tables"] = {TABLE: {**TEXT[TABLE], "exclude": ["id"]}}
    await only(data, "the key column id", "keep it")


async def test_index_of_a_table_that_does_not_travel(data: dict[str, Any], execute: Any) -> None:
    execute("CREATE TABLE IF NOT EXISTS other (id integer PRIMARY KEY)")
    data["postgres"]["tables"] = ["public.other"]
    data["tables"] = TEXT
    found = await findings(data)
    assert [finding.level for finding in found] == ["warning", "error"]
    assert "does not travel" in found[1].text


async def test_redis_key_that_names_no_key_column(data: dict[str, Any]) -> None:
    data["tables"] = {TABLE: {**TEXT[TABLE], "redis_key": "memory:{user_id}"}}
    await only(data, "has to name each key column once", "for instance")


async def test_slot_of_another_plugin(data: dict[str, Any], execute: Any) -> None:
    name = data["postgres"]["slot"]
    execute(f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')")
    try:
        await only(data, "was made for pgoutput", "plugin = 'pgoutput'")
    finally:
        execute(f"SELECT pg_drop_replication_slot('{name}')")


async def test_slot_of_another_database(data: dict[str, Any], servers: Endpoints) -> None:
    name = data["postgres"]["slot"]
    with psycopg.connect(servers.postgres_dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'wal2json')", [name])
        try:
            await only(data, "belongs to the database", "[postgres] slot")
        finally:
            connection.execute("SELECT pg_drop_replication_slot(%s)", [name])


async def test_publication_that_leaves_changes_out(data: dict[str, Any], execute: Any) -> None:
    name = data["postgres"]["publication"]
    data["postgres"]["plugin"] = "pgoutput"
    execute(f"CREATE PUBLICATION {name} FOR TABLE memories WITH (publish = 'insert')")
    try:
        found = await only(data, "leaves out some kinds of changes", "ALTER PUBLICATION")
        execute(found.remedy)
        assert await findings(data) == []
    finally:
        execute(f"DROP PUBLICATION {name}")


async def test_topic_with_another_setting(data: dict[str, Any]) -> None:
    config = parse(data)
    await ensure_topics(config.kafka, [("public", "memories")])
    assert await findings(data) == []
    data["kafka"]["partitions"] = config.kafka.partitions + 1
    await only(data, f"has {config.kafka.partitions} partitions", f"partitions = {config.kafka.partitions}")


async def test_more_replicas_than_brokers(data: dict[str, Any]) -> None:
    data["kafka"]["replication_factor"] = 3
    found = await findings(data)
    assert found[0].text == "[kafka] replication_factor = 3, but there are only 1 brokers"


async def test_database_that_others_use(data: dict[str, Any]) -> None:
    with redis.Redis.from_url(data["redis"]["url"]) as client:
        client.set("theirs", 1)
        try:
            await only(data, "1 keys that are not ours", "a database of its own", level="warning")
        finally:
            client.delete("theirs")


async def test_redis_that_forgets(data: dict[str, Any], tmp_path: Path) -> None:
    own = {"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru", "appendonly": "no", "requirepass": "secret"}
    with Servers(tmp_path / "redis", only=("redis",), settings={"redis": own}) as endpoints:
        data["redis"]["url"] = endpoints.redis_url
        found = {finding.text: finding.level for finding in await findings(data)}
        assert found == {
            "appendonly is off: after a restart everything since the last dump is replayed from Kafka": "warning",
            "maxmemory-policy is allkeys-lru: records would vanish without a trace": "error",
        }
        data["redis"]["url"] = endpoints.redis_url.replace("secret", "wrong")
        await only(data, "refuses the password", "PASSWORD_FILE")


async def test_port_that_is_taken(data: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        data["gateway"]["port"] = taken.getsockname()[1]
        await only(data, "the gateway cannot listen", "choose a free port")


async def test_folder_that_is_a_file(data: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    data["faiss"]["path"] = str(tmp_path / "file" / "index")
    found = await findings(data)
    assert "the index cannot be kept" in found[0].text


async def test_dimension_that_does_not_fit(data: dict[str, Any]) -> None:
    data["faiss"]["dimension"] = 100
    await only(data, "faiss.dimension = 100", "leave faiss.dimension out")
