"""The whole pipeline with the rights of docs/security.md and no other, over TLS; and what those rights do not allow."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from aiokafka import AIOKafkaProducer
from aiokafka.errors import TopicAuthorizationFailedError
from psycopg.conninfo import make_conninfo

from cdc.commands.verify import compare_all
from cdc.config import Config, parse
from cdc.doctor import examine
from cdc.errors import CdcError, ConnectError
from cdc.kafka.topics import ensure_topics
from cdc.kafka.writer import Writer
from cdc.migrations import migrate
from cdc.source.connection import connect
from consumers.rebuild import rebuild
from consumers.redis import RedisStore
from consumers.store import Batch, Record
from tests.comparison import assert_equal_everywhere, redis_rows
from tests.pipeline import MEMORIES, Running, pipeline, settings
from tests.security.broker import administrate, documented
from tests.security.conftest import CONSUMER, DOCUMENT, READER, Secured, opened

PASSWORD = "role's secret"  # of both roles of PostgreSQL
REDIS_PASSWORD = "docs"
LIVE, SHADOW = 4, 5  # Redis' databases; no other test of this server uses them
TABLE = "public.memories"
ROWS = (
    "INSERT INTO memories SELECT i, 'user ' || i % 5, repeat('word ', 600), i, i, '{}', ARRAY[i, 1]"
    " FROM generate_series(1, 50) i"
)


@dataclass(frozen=True)
class Parties:
    """The same pipeline, as each party may use it; `all` is the tests' own look through the open doors."""

    all: Config
    reader: Config
    consumer: Config
    viewer: Config


def redis_rules(text: str) -> list[list[str]]:
    """Each `ACL SETUSER` of the document, continued lines joined."""
    return [found.split() for found in re.findall(r"^    ACL SETUSER ((?:.*\n)(?:        .*\n)*)", text, re.MULTILINE)]


@pytest.fixture
def database(secured: Secured, secured_database: str) -> Iterator[psycopg.Connection]:
    """A superuser's connection: the canonical schema with its roles, the test's own table, and one nobody may read."""
    migrate(secured_database)
    with psycopg.connect(secured_database, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS memories, private")
        connection.execute(MEMORIES)
        connection.execute("CREATE TABLE private (id integer PRIMARY KEY)")
        for role in ("cdc_reader", "cdc_viewer"):
            connection.execute(f"ALTER ROLE {role} LOGIN PASSWORD '{PASSWORD.replace(chr(39), chr(39) * 2)}'")
        connection.execute("SELECT cdc.allow('public.memories')")
        yield connection


@pytest.fixture
async def parties(
    secured: Secured, secured_database: str, database: psycopg.Connection, tmp_path: Path, plugin: str
) -> Parties:
    """Rights as the document grants them, for names of this test."""
    token, text = f"t{secrets.token_hex(4)}", DOCUMENT.read_text()
    acls = [acl._replace(name=acl.name.replace("memories", token)) for acl in documented(text)]
    await administrate(secured.open.kafka_bootstrap, {}, acls)
    user, *rules = redis_rules(text)[0]
    with opened(secured.open.redis_url) as client:
        client.flushall()
        client.execute_command("ACL", "SETUSER", user, "reset", "on", *_for_tests(rules))
        client.execute_command("ACL", "LOG", "RESET")
    data = settings(secured.open, secured_database, tmp_path)
    data |= {"source_name": token, "index": {"port": 0}, "metrics": dict.fromkeys(METRICS, 0)}
    data["postgres"]["plugin"] = plugin
    data["kafka"]["prefix"] = token
    data["redis"]["url"] = secured.open.redis_url.replace("/0", f"/{LIVE}")

    def party(role: str, kafka: str) -> Config:
        dsn = secured.dsn(make_conninfo(secured_database, user=role, password=PASSWORD))
        encrypted = {
            "postgres": data["postgres"] | {"dsn": dsn},
            "kafka": data["kafka"] | secured.kafka(kafka),
            "redis": data["redis"] | secured.redis(user, REDIS_PASSWORD, LIVE),
        }
        return parse({**data, **encrypted})

    if plugin == "pgoutput":
        name = data["postgres"]["publication"]
        database.execute(f"CREATE PUBLICATION {name} FOR TABLE memories WITH (publish_via_partition_root = false)")
    return Parties(
        parse(data), party("cdc_reader", READER), party("cdc_reader", CONSUMER), party("cdc_viewer", CONSUMER)
    )


METRICS = ("reader_port", "redis_port", "faiss_port")


def _for_tests(rules: list[str]) -> list[str]:
    return [rule.replace("~memory:", "~memories:").replace(">password", f">{REDIS_PASSWORD}") for rule in rules]


@pytest.fixture
async def running(parties: Parties) -> AsyncIterator[Running]:
    """The pipeline at work."""
    async with pipeline(parties.all, reading=parties.reader, consuming=parties.consumer) as running:
        yield running


def denials(secured: Secured) -> list[Any]:
    """What Redis refused since the fixture."""
    with opened(secured.open.redis_url) as client:
        return client.execute_command("ACL", "LOG")


@pytest.mark.parametrize("plugin", ["wal2json", "pgoutput"])
async def test_the_pipeline_runs_with_the_documented_rights(
    secured: Secured, database: psycopg.Connection, parties: Parties, running: Running, plugin: str
) -> None:
    database.execute(ROWS)
    await running.caught_up()  # the snapshot, and the stream behind it
    database.execute("UPDATE memories SET score = -score WHERE id % 2 = 0")  # content is unchanged TOAST: re-selected
    database.execute("DELETE FROM memories WHERE id % 10 = 0")
    await running.caught_up()
    encrypted = database.execute(
        "SELECT a.application_name, a.usename, s.ssl FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid)"
        " WHERE a.application_name LIKE 'memory-cdc%'"
    ).fetchall()
    assert {name for name, _user, _tls in encrypted} >= {
        "memory-cdc", "memory-cdc catalog", "memory-cdc heartbeat", "memory-cdc reader", "memory-cdc watch",
    }, encrypted  # fmt: skip
    assert all(user == "cdc_reader" and tls for _name, user, tls in encrypted), encrypted
    await assert_equal_everywhere(running)
    assert [f for f in [f async for f in examine(parties.reader)] if f.level == "error"] == []
    outcomes = await compare_all(parties.viewer, ["redis"], None, lambda line: None)
    assert [outcome.equal for outcome in outcomes] == [True]
    await _rebuilt(secured, parties)
    assert denials(secured) == []


async def _rebuilt(secured: Secured, parties: Parties) -> None:
    """With the rights that a rebuild needs on top, and taken back."""
    user, *rules = redis_rules(DOCUMENT.read_text())[1]
    before = await asyncio.to_thread(redis_rows, parties.all)
    with _granted(secured, user, rules):
        store = RedisStore(parties.consumer)
        try:
            report = await rebuild(parties.consumer, store, tables=[TABLE], live=store)
        finally:
            await store.close()
    assert report.swapped
    assert report.live_differences == []
    assert sorted(map(str, await asyncio.to_thread(redis_rows, parties.all))) == sorted(map(str, before))


@contextmanager
def _granted(secured: Secured, user: str, rules: list[str]) -> Iterator[None]:
    with opened(secured.open.redis_url) as client:
        client.execute_command("ACL", "SETUSER", user, *rules)
        yield
        client.execute_command("ACL", "SETUSER", user, *(rule.replace("+", "-") for rule in rules))


@pytest.mark.parametrize("plugin", ["wal2json"])
async def test_the_rights_end_there(secured: Secured, database: psycopg.Connection, parties: Parties) -> None:
    for config in (parties.reader, parties.viewer):
        with connect(config.postgres) as connection:
            for statement in (
                "SELECT FROM private", "INSERT INTO memories VALUES (1)", "UPDATE memories SET score = 1",
                "DELETE FROM memories", "TRUNCATE memories", "CREATE TABLE public.mine ()", "CREATE SCHEMA mine",
                "ALTER TABLE memories REPLICA IDENTITY FULL", "COPY memories TO '/tmp/x'",
            ):  # fmt: skip
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement)
    with pytest.raises(ConnectError, match="walsender"):
        connect(parties.viewer.postgres, replication=True)
    await ensure_topics(parties.reader.kafka, [("public", "memories")])
    producer = AIOKafkaProducer(**parties.consumer.kafka.client_options())
    await producer.start()
    try:
        kafka = parties.all.kafka
        for topic in (kafka.table_topic("public", "memories"), kafka.progress_topic, kafka.control_topic):
            with pytest.raises(TopicAuthorizationFailedError):
                await producer.send_and_wait(topic, b"forged")
    finally:
        await producer.stop()
    with redis.Redis.from_url(parties.consumer.redis.url, **parties.consumer.redis.client_options()) as client:
        for command in (
            ("GET", "other"),
            ("SET", "cdcx", "1"),
            ("FLUSHALL",),
            ("FLUSHDB",),
            ("KEYS", "*"),
            ("CONFIG", "GET", "*"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)


@pytest.mark.parametrize("plugin", ["wal2json"])
async def test_a_missing_right_is_named(secured: Secured, database: psycopg.Connection, parties: Parties) -> None:
    other = parties.reader.model_copy(
        update={"kafka": parties.consumer.kafka.model_copy(update={"prefix": "elsewhere"})}
    )
    with pytest.raises(CdcError) as found:
        await _written(other)
    assert "does not allow cdc-consumer" in str(found.value)
    assert "docs/security.md" in found.value.hint
    database.execute("REVOKE SELECT ON memories FROM cdc_reader")
    assert ("role cdc_reader may not read public.memories", 'GRANT SELECT ON "public"."memories" TO "cdc_reader"') in [
        (f.text, f.remedy) async for f in examine(parties.reader)
    ]
    database.execute("SELECT cdc.allow('public.memories')")
    database.execute("ALTER TABLE memories ENABLE ROW LEVEL SECURITY")
    assert (
        "row level security hides rows of public.memories from role cdc_reader",
        'ALTER ROLE "cdc_reader" BYPASSRLS',
    ) in [(f.text, f.remedy) async for f in examine(parties.reader)]
    with connect(parties.reader.postgres) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("SELECT FROM memories")  # refused, not empty


async def _written(config: Config) -> None:
    writer = Writer(config, {})
    try:
        await writer.start()
    finally:
        await writer.close()


@pytest.mark.parametrize("plugin", ["wal2json"])
@pytest.mark.parametrize("missing", ["-hget", "-evalsha", "-hset", "-scan"])
async def test_redis_names_a_missing_right(secured: Secured, parties: Parties, missing: str) -> None:
    """Whatever the command, and never as a record that is at fault."""
    store = RedisStore(parties.consumer)
    with opened(secured.open.redis_url) as client:
        client.execute_command("ACL", "SETUSER", "cdc", missing)
    try:
        with pytest.raises(ConnectError) as found:
            await _worked(store)
    finally:
        await store.close()
    assert "docs/security.md" in found.value.hint
    with opened(secured.open.redis_url) as client:
        log = client.execute_command("ACL", "LOG")
    assert [entry["object"] for entry in log] == [missing[1:]]


async def _worked(store: RedisStore) -> None:
    """All that a consumer does."""
    await store.open()
    value = b'{"op":"c","source":{"ts_us":1},"after":{"id":1}}'
    record = Record(b'{"id":1}', value, b"0" * 31 + b"1", b"{}", 0, 0)
    applied = await store.apply(Batch("public", "memories", "topic", [record], {("topic", 0): 1}))
    assert not applied.rejected
    await store.count("public", "memories")
