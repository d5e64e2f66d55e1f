"""Servers as a production would have them: TLS everywhere, passwords everywhere, and access control lists.

Each keeps an open door for the tests' own observation: PostgreSQL's superuser, Kafka's internal listener (a super
user), Redis' plain port.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
import redis
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cdc.embedded import Endpoints, Servers
from cdc.embedded.folder import HOST as ADDRESS
from cdc.embedded.folder import Folder
from cdc.embedded.postgres import Postgres
from tests.conftest import fresh_database
from tests.security import certificates
from tests.security.broker import administrate
from tests.security.certificates import HOST, Certificates

DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"
READER, CONSUMER = "cdc-reader", "cdc-consumer"  # Kafka's users
PASSWORDS = {READER: "reader's secret", CONSUMER: "consumer's secret"}


@dataclass(frozen=True)
class Secured:
    """`open` are the doors of the tests; the ports are those with TLS, Kafka's with SCRAM and with certificates."""

    open: Endpoints
    files: Certificates
    secure_port: int
    mutual_port: int
    redis_port: int

    def dsn(self, dsn: str, **changes: str) -> str:
        """A dsn of the open door, verified in full."""
        return make_conninfo(
            dsn, **{"host": HOST, "sslmode": "verify-full", "sslrootcert": str(self.files.authority), **changes}
        )

    def kafka(self, user: str, **changes: Any) -> dict[str, Any]:
        """Settings of [kafka] for SASL over TLS."""
        settings = {
            "bootstrap": f"{HOST}:{self.secure_port}", "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512", "username": user, "password": PASSWORDS[user],
            "ca_file": str(self.files.authority),
        }  # fmt: skip
        return {**settings, **changes}

    def redis(self, user: str, password: str, database: int, **changes: Any) -> dict[str, Any]:
        """Settings of [redis] for TLS."""
        url = f"rediss://{user}@{HOST}:{self.redis_port}/{database}"
        return {"url": url, "password": password, "ca_file": str(self.files.authority), **changes}


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """PostgreSQL, Kafka and Redis with TLS."""
    files = certificates.make(tmp_path_factory.mktemp("certificates"))
    data = tmp_path_factory.mktemp("secured")
    ports = Folder(data).ports(("kafka", "controller", "secure", "mutual", "redis", "redis-tls"))
    own = Servers(data, report=print, settings={"kafka": _kafka(files, ports), "redis": _redis(files, ports)})
    try:
        endpoints = own.start()
        _encrypt(cast(Postgres, own["postgres"]), files)
        asyncio.run(administrate(endpoints.kafka_bootstrap, PASSWORDS, []))
        yield Secured(endpoints, files, ports["secure"], ports["mutual"], ports["redis-tls"])
    finally:
        own.erase()


@pytest.fixture(scope="module")
def secured_database(secured: Secured) -> Iterator[str]:
    """A fresh database on the secured server, as its superuser."""
    with fresh_database(secured.open.postgres_dsn) as dsn:
        yield dsn


def _kafka(files: Certificates, ports: dict[str, int]) -> dict[str, str]:
    return {
        "listeners": f"BROKER://{ADDRESS}:{ports['kafka']},CONTROLLER://{ADDRESS}:{ports['controller']},"
        f"SECURE://{ADDRESS}:{ports['secure']},MUTUAL://{ADDRESS}:{ports['mutual']}",
        "advertised.listeners": f"BROKER://{ADDRESS}:{ports['kafka']},"
        f"SECURE://{HOST}:{ports['secure']},MUTUAL://{HOST}:{ports['mutual']}",
        "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL,MUTUAL:SSL",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(files.server),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(files.authority),
        "listener.name.mutual.ssl.client.auth": "required",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.secure.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",  # who comes without TLS: broker, controller, the tests
    }


def _redis(files: Certificates, ports: dict[str, int]) -> dict[str, str]:
    return {
        "tls-port": str(ports["redis-tls"]),
        "tls-cert-file": str(files.server),
        "tls-key-file": str(files.server),
        "tls-ca-cert-file": str(files.authority),
        "tls-auth-clients": "no",
    }


def _encrypt(server: Postgres, files: Certificates) -> None:
    """The key has to be the server's account's own; switched on without a restart."""
    key = server.home / "server.pem"
    shutil.copy(files.server, key)
    key.chmod(0o600)
    if server.account is not None:
        os.chown(key, server.account.uid, server.account.gid)
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        for name, value in {"ssl_cert_file": str(key), "ssl_key_file": str(key), "ssl": "on"}.items():
            connection.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
        connection.execute("SELECT pg_reload_conf()")


def opened(url: str) -> redis.Redis:
    """The open door to Redis."""
    return redis.Redis.from_url(url, decode_responses=True)
