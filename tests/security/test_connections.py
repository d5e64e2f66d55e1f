"""Every server over TLS with a password, and each way of being refused: one sentence with its remedy, at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdc.config import Config, parse
from cdc.errors import CdcError, ConnectError, LoginError
from cdc.kafka.progress import read_progress
from cdc.reader import Reader
from cdc.source.connection import connect
from cdc.source.stream import identify
from consumers.redis import RedisStore
from consumers.runtime import Runtime
from tests.pipeline import settings
from tests.security.certificates import HOST
from tests.security.conftest import READER, Secured, opened

PASSWORD = "a correct horse"


@pytest.fixture
def data(secured: Secured, secured_database: str, tmp_path: Path) -> dict[str, Any]:
    """Settings with TLS everywhere."""
    made = settings(secured.open, secured.dsn(secured_database), tmp_path, kafka=secured.kafka(READER))
    with opened(secured.open.redis_url) as client:
        client.execute_command("ACL", "SETUSER", "cdc", "reset", "on", f">{PASSWORD}", "~*", "+@all")
    made["redis"] |= secured.redis("cdc", PASSWORD, 0)
    return made


def changed(data: dict[str, Any], section: str, **values: Any) -> Config:
    """With other values in one section; None takes one out."""
    return parse({**data, section: {k: v for k, v in {**data[section], **values}.items() if v is not None}})


def assert_refused(error: CdcError, kind: type[CdcError], text: str, hint: str) -> None:
    """One sentence, one remedy."""
    assert type(error) is kind, error
    assert text in error.message, error
    assert "\n" not in error.message, error
    assert hint in error.hint, error


KAFKA: list[tuple[dict[str, Any], type[CdcError], str, str]] = [
    ({"password": "wrong"}, LoginError, "refuses the user name or password of cdc-reader", "PASSWORD_FILE"),
    ({"username": "nobody"}, LoginError, "refuses the user name or password of nobody", "username"),
    ({"ca_file": "stranger"}, LoginError, "a certificate that is not trusted", "ca_file"),
    ({"bootstrap": "127.0.0.1"}, LoginError, "a certificate of another host name", "advertised.listeners"),
    ({"sasl_mechanism": "PLAIN"}, ConnectError, "does not offer PLAIN", "sasl_mechanism"),
    ({"security_protocol": "SASL_PLAINTEXT", "ca_file": None}, ConnectError, "does not answer", "security_protocol"),
]


@pytest.fixture
def broken(secured: Secured, data: dict[str, Any]) -> Callable[[dict[str, Any]], Config]:
    """[kafka] with a fault; its words stand for what only the fixture knows."""

    def build(fault: dict[str, Any]) -> Config:
        known = {"stranger": str(secured.files.stranger), "127.0.0.1": f"127.0.0.1:{secured.secure_port}"}
        return changed(data, "kafka", **{name: known.get(value, value) for name, value in fault.items()})

    return build


async def test_kafka_takes_who_is_right(data: dict[str, Any]) -> None:
    assert await read_progress(parse(data)) is None


@pytest.mark.parametrize(("fault", "kind", "text", "hint"), KAFKA)
async def test_kafka_refuses(broken: Any, fault: dict[str, Any], kind: type[CdcError], text: str, hint: str) -> None:
    with pytest.raises(CdcError) as found:
        await read_progress(broken(fault))
    assert_refused(found.value, kind, text, hint)


@pytest.mark.parametrize("fault", [KAFKA[0], KAFKA[2], KAFKA[3]])
async def test_kafka_ends_a_consumer_that_it_refuses(broken: Any, fault: tuple[Any, ...]) -> None:
    config = broken(fault[0])
    with pytest.raises(CdcError) as found:
        await Runtime(config, RedisStore(config), exclusive=False).run()
    assert_refused(found.value, *fault[1:])


async def test_kafka_knows_us_by_a_certificate(secured: Secured, data: dict[str, Any]) -> None:
    mutual = {
        "bootstrap": f"{HOST}:{secured.mutual_port}", "security_protocol": "SSL", "sasl_mechanism": None,
        "username": None, "password": None,
    }  # fmt: skip
    assert await read_progress(changed(data, "kafka", **mutual, cert_file=str(secured.files.client))) is None
    with pytest.raises(CdcError) as found:
        await read_progress(changed(data, "kafka", **mutual))
    assert_refused(found.value, LoginError, "wants a certificate of us", "cert_file")


POSTGRES: list[tuple[dict[str, str], str, str]] = [
    ({"sslrootcert": "stranger"}, "certificate verify failed", "sslrootcert"),
    ({"host": "127.0.0.1"}, 'does not match host name "127.0.0.1"', "as host in [postgres] dsn"),
    ({"password": "wrong"}, "password authentication failed", "PASSWORD_FILE"),
    ({"sslrootcert": "/nowhere"}, "root certificate file", "sslrootcert"),
]


def test_postgres_takes_who_is_right(data: dict[str, Any]) -> None:
    config = parse(data)
    with connect(config.postgres) as connection:
        row = connection.execute("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
    assert row == (True, "TLSv1.3")
    assert identify(config.postgres)[1] == 1  # the replication protocol


@pytest.mark.parametrize("replication", [False, True])
@pytest.mark.parametrize(("fault", "text", "hint"), POSTGRES)
def test_postgres_refuses(
    secured: Secured, secured_database: str, data: dict[str, Any], fault: dict[str, str], text: str, hint: str,
    replication: bool,
) -> None:  # fmt: skip
    known = {"stranger": str(secured.files.stranger)}
    dsn = secured.dsn(secured_database, **{name: known.get(value, value) for name, value in fault.items()})
    with pytest.raises(CdcError) as found:
        connect(changed(data, "postgres", dsn=dsn).postgres, replication=replication)
    assert_refused(found.value, LoginError, text, hint)


async def test_a_reader_ends_that_postgres_refuses(
    secured: Secured, secured_database: str, data: dict[str, Any]
) -> None:
    dsn = secured.dsn(secured_database, host="127.0.0.1")
    with pytest.raises(LoginError, match="does not match host name"):
        await Reader(changed(data, "postgres", dsn=dsn)).run()


REDIS: list[tuple[dict[str, Any], type[CdcError], str, str]] = [
    ({"password": "wrong"}, LoginError, "invalid username-password pair", "[redis] password"),
    ({"ca_file": "stranger"}, LoginError, "a certificate that is not trusted", "[redis] ca_file"),
    ({"url": "rediss://cdc@127.0.0.1:{secure}/0"}, LoginError, "a certificate of another host name", "[redis] url"),
    ({"url": "redis://cdc@localhost:{secure}/0", "ca_file": None}, ConnectError, "cannot be reached", "rediss://"),
]


async def test_redis_takes_who_is_right(data: dict[str, Any]) -> None:
    store = RedisStore(parse(data))
    assert await store.open() == {}
    await store.close()


@pytest.mark.parametrize(("fault", "kind", "text", "hint"), REDIS)
async def test_redis_ends_a_consumer_that_it_refuses(
    secured: Secured, data: dict[str, Any], fault: dict[str, Any], kind: type[CdcError], text: str, hint: str
) -> None:
    places = {"secure": str(secured.redis_port), "stranger": str(secured.files.stranger)}
    known = {name: value and places.get(value, value.format(**places)) for name, value in fault.items()}
    store = RedisStore(changed(data, "redis", **known))
    with pytest.raises(CdcError) as found:
        await store.open()
    await store.close()
    assert_refused(found.value, kind, text, hint)
