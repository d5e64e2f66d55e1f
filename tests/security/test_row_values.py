"""Canaries for rows: the real pipeline at debug level, over every error it survives and some it does not, logs none."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from aiokafka import AIOKafkaProducer

from cdc.config import Config, parse
from cdc.embedded import Endpoints
from cdc.envelope import decode_floats, decode_key
from cdc.errors import CdcError
from cdc.listening import announce, is_loopback
from cdc.position import Position, decode_position
from cdc.source import types
from cdc.source.connection import connect_error, said
from cdc.source.pgoutput import PgoutputDecoder
from cdc.source.wal2json import Wal2jsonDecoder
from cdc.version import decode_vector
from consumers.redis.failures import translate
from tests.pipeline import CommandChild, config_of, settings
from tests.waiting import until

CANARY = "Canary7e3"
TABLE = "public.memories"
ANY = "0.0.0.0"


def listening(pid: int) -> set[str]:
    """The addresses on which a process listens (proc(5), net/tcp: state 0A)."""
    sockets = {link for fd in Path(f"/proc/{pid}/fd").iterdir() if (link := _link(fd)).startswith("socket:")}
    found = set()
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                raw = bytes.fromhex(fields[1].partition(":")[0])
                words = [raw[at : at + 4][::-1] for at in range(0, len(raw), 4)]  # each in the machine's byte order
                found.add(socket.inet_ntop(family, b"".join(words)))
    return found


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""  # closed meanwhile


@pytest.fixture
def source(database: str) -> Iterator[psycopg.Connection]:
    """A table whose every value is a canary, keys included."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE memories (id text PRIMARY KEY, who text, content text, embedding real[], at text);"
            "ALTER TABLE memories ALTER content SET STORAGE EXTERNAL"
        )
        yield connection
        connection.execute("DROP TABLE memories")


def insert(connection: psycopg.Connection, name: str, embedding: list[float], at: str = "2026-01-01") -> None:
    """A row whose content goes to TOAST."""
    values = [f"{CANARY}-{name}", f"{CANARY}-who", f"{CANARY} " * 400, embedding, at]
    connection.execute("INSERT INTO memories VALUES (%s, %s, %s, %s, %s)", values)


async def test_the_pipeline_logs_no_row(
    servers: Endpoints, database: str, source: psycopg.Connection, tmp_path: Path
) -> None:
    data = settings(
        servers, database, tmp_path, metrics=dict.fromkeys(("reader_port", "redis_port", "faiss_port"), 0),
        index={"port": 0}, faiss={"dimension": 2},
        tables={TABLE: {"vector": "embedding", "user": "who", "recency": "at"}},
    )  # fmt: skip
    config = parse(data)
    with redis.Redis.from_url(config.redis.url) as client:
        client.flushdb()
        client.set(f"memories:{CANARY}-foreign", "somebody else's")
    insert(source, "good", [1, 2])
    children = [
        CommandChild(data, tmp_path, *arguments, "--verbose")
        for arguments in (("reader",), ("consume", "redis"), ("consume", "faiss"))
    ]
    try:
        await until(lambda: "snapshot done" in children[0].log.read_text(), "the snapshot")
        insert(source, "foreign", [1, 2])
        insert(source, "dimension", [1, 2, 3])
        insert(source, "recency", [3, 4], at=f"{CANARY} is no time")
        source.execute("UPDATE memories SET who = who || '!'")  # holes, re-selected by key
        await _produce_garbage(config)
        reasons = ("foreign", "dimension", "recency", "decode", "undecodable")
        await until(lambda: all(f'"reason": "{r}"' in _logs(children) for r in reasons), f"dead letters {reasons}")
        for child in children:
            assert listening(child.process.pid) == {"127.0.0.1"}
        source.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'memory-cdc%'"
        )
        await until(lambda: '"waiting"' in children[0].log.read_text(), "a lost connection")
    finally:
        for child in children:
            child.stop()
    logs = _logs(children)
    assert CANARY not in logs, [line for line in logs.splitlines() if CANARY in line]
    assert "Traceback" not in logs


def _logs(children: list[CommandChild]) -> str:
    return "".join(child.log.read_text() for child in children)


async def _produce_garbage(config: Config) -> None:
    """Records of another program in our topic: no JSON, JSON of another shape, and a position that is none."""
    position = Position(1 << 20, 1, 1).encode()
    headers = [("cdc.pos", position), ("cdc.ver", b"{}")]
    topic, key = config.kafka.table_topic("public", "memories"), b'{"id":"%b-x"}' % CANARY.encode()
    async with AIOKafkaProducer(**config.kafka.client_options()) as producer:
        for number, (value, given) in enumerate(
            (
                (b'{"op": "c", "after": %b' % CANARY.encode(), headers),
                (b'{"op": "%b", "source": "%b"}' % (CANARY.encode(), CANARY.encode()), headers),
                (b"{}", [("cdc.pos", CANARY.encode()), ("cdc.ver", CANARY.encode())]),
            )
        ):
            await producer.send_and_wait(topic, value, key=key[:-2] + b'%d"}' % number, headers=given)


# What PostgreSQL answers with a value in its message, its DETAIL, its CONTEXT or the query it quotes.
QUOTING = [
    "SELECT '{c}'::integer", "SELECT '{c}'::uuid", "SELECT '{c}'::timestamptz", "SELECT ('\"{c}'::jsonb)",
    "INSERT INTO memories (id) VALUES ('{c}'), ('{c}')", "SELECT '{c}' FROM nowhere", "SELECT '{c}' || nothing",
    "DO $$ BEGIN RAISE EXCEPTION '{c}'; END $$", "DO $$ BEGIN PERFORM '{c}'::integer; END $$",
    "SELECT CAST('{c}' AS nothing)", "SELECT '{c}', 1/0", "INSERT INTO memories VALUES ('{c}', NULL, NULL, '{{{c}}}')",
]  # fmt: skip


@pytest.mark.parametrize("query", QUOTING)
def test_postgres_is_not_quoted(source: psycopg.Connection, query: str) -> None:
    with pytest.raises(psycopg.Error) as found:
        source.execute(query.format(c=CANARY).encode())
    assert CANARY in str(found.value) or "division" in str(found.value)
    shown = connect_error(found.value)
    assert CANARY not in str(shown) + said(found.value)
    assert shown.message.strip() != "PostgreSQL:"


MALFORMED = [CANARY.encode(), b"{%b" % CANARY.encode(), b'{"action":"%b"}' % CANARY.encode(), b"I" + CANARY.encode()]


def test_what_does_not_decode_is_not_quoted(
    source: psycopg.Connection, servers: Endpoints, database: str, tmp_path: Path
) -> None:
    from cdc.source.catalog import Catalog

    catalog = Catalog(database, config_of(servers, database, tmp_path))
    kinds = [
        types.codec(types.PgType(oid, "kind"))
        for oid in (types.BOOL, types.BYTEA, types.INT4, types.FLOAT8, types.NUMERIC)
    ]
    array = types.codec(types.PgType(0, "array", element=types.PgType(types.INT4, "int4")))
    text = types.codec(types.PgType(types.TEXT, "text"))
    attempts: list[Any] = [(codec, CANARY.encode()) for codec in (*kinds, array)] + [(text, CANARY.encode() + b"\xff")]
    for payload in MALFORMED:
        attempts += [(Wal2jsonDecoder(catalog).decode, payload), (PgoutputDecoder(catalog).decode, payload)]
        attempts += [(decode_key, payload), (decode_vector, payload), (decode_position, payload)]
    attempts += [(decode_floats, CANARY), (decode_floats, f"f32:{CANARY}")]
    refused = []
    for decode, payload in attempts:
        try:
            decode(payload)
        except CdcError as error:
            refused.append(str(error))
    assert len(refused) > 0.9 * len(attempts)  # a JSON object is a key, whatever it holds
    assert [text for text in refused if CANARY in text] == []
    catalog.close()


@pytest.mark.parametrize(
    "reply",
    [
        f"unknown command 'EVALSHA', with args beginning with: 'x' '1' '{CANARY}'",
        f"NOPERM User cdc has no permissions to access the 'memory:{CANARY}' key",
    ],
)
def test_redis_is_not_quoted(reply: str) -> None:
    assert CANARY not in str(translate(redis.exceptions.ResponseError(reply), "host:6379/0"))


@pytest.mark.parametrize(
    ("host", "alone"), [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), (ANY, False),
                        ("::", False), ("10.0.0.1", False), ("db.example", False)],
)  # fmt: skip
def test_who_can_reach_an_address(host: str, alone: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert is_loopback(host) is alone
    announce("metrics are served", host, 9480)
    assert ("unprotected" in capsys.readouterr().out) is not alone


def test_the_doctor_warns_of_an_open_address(servers: Endpoints, database: str, tmp_path: Path) -> None:
    from cdc.doctor import machine

    made = settings(servers, database, tmp_path, gateway={"host": ANY, "port": 0})
    warnings = [finding for finding in machine.check(parse(made)) if finding.level == "warning"]
    assert [("the gateway" in f.text, "docs/security.md" in f.remedy) for f in warnings] == [(True, True)]
    assert [f for f in machine.check(parse(settings(servers, database, tmp_path))) if "unprotected" in f.text] == []
