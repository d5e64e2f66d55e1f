"""The configuration's sections of the three servers: how to reach them, and how they are used."""

from __future__ import annotations

import fnmatch
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from cdc.section import Certificates, Section

MIB = 1 << 20
DEAD_LETTER_EXTRA_BYTES = MIB  # reason and origin beside a record of the largest size

Name = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,63}$")]  # what PostgreSQL allows in a slot name
_DSN = "it is no connection string of libpq: host=… dbname=…, or postgresql://…, special characters of a value as %XX"
_REDIS_SCHEMES = ("redis", "rediss", "unix")
_REDIS_URL = "it is no address: write it like redis://host:6379/0, rediss:// for TLS, special characters as %XX"


class Postgres(Section):
    """The source. `dsn` is libpq's, sslmode and sslrootcert included; the password may come from `password` (or
    PASSWORD_FILE) instead."""

    dsn: str = Field(repr=False)  # may hold a password
    password: SecretStr | None = None
    slot: Name = "memory_cdc"
    publication: Name = "memory_cdc"
    plugin: Literal["wal2json", "pgoutput"] = "wal2json"
    tables: tuple[str, ...] = Field(("public.memories",), min_length=1)  # schema.table, * and ? allowed
    missing_identity: Literal["refuse", "allow"] = "refuse"
    snapshot: Literal["initial", "never"] = "initial"
    snapshot_chunk_rows: int = Field(20_000, ge=1)
    snapshot_workers: int = Field(2, ge=1, le=32)
    backfill_rows_per_second: int | None = Field(None, ge=1)  # None: as fast as it goes
    repair_whole_share: float = Field(0.2, ge=0, le=1)  # of a table's rows that differ: beyond it all are sent again
    heartbeat_seconds: float = Field(2.0, gt=0)
    status_seconds: float = Field(5.0, gt=0, le=10)  # half of 10 s, well below wal_sender_timeout (60 s)
    connect_timeout_seconds: int = Field(10, ge=1)
    tcp_timeout_seconds: int = Field(20, ge=3)  # packets unanswered that long: TCP gives the connection up
    silence_seconds: float = Field(30.0, gt=0)  # nothing heard that long: asked whether the server still serves us

    @field_validator("dsn")
    @classmethod
    def _connection_string(cls, dsn: str) -> str:
        without_password(dsn)
        return dsn

    def selects(self, schema: str, table: str) -> bool:
        """True when `tables` names it."""
        return any(fnmatch.fnmatchcase(f"{schema}.{table}", pattern) for pattern in self.tables)

    def conninfo(self, **extra: str) -> str:
        """libpq connection string with the password filled in; do not log it. TCP's time-outs are those of the dsn
        where it has any."""
        from psycopg.conninfo import conninfo_to_dict, make_conninfo

        password = {"password": self.password.get_secret_value()} if self.password else {}
        seconds = self.tcp_timeout_seconds
        bounds = {
            "keepalives_idle": seconds // 2,  # then three probes in the other half
            "keepalives_interval": max(1, seconds // 6),
            "keepalives_count": 3,
            "tcp_user_timeout": seconds * 1000,
        }
        own = {name: value for name, value in bounds.items() if name not in conninfo_to_dict(self.dsn)}
        return make_conninfo(self.dsn, connect_timeout=self.connect_timeout_seconds, **own, **password, **extra)


class Kafka(Certificates):
    """Topics are `<prefix>.<schema>.<table>`; ours beside them `<prefix>.cdc.*`."""

    bootstrap: str
    prefix: str = Field("memories", pattern=r"^[A-Za-z0-9._-]{1,100}$")
    partitions: int = Field(4, ge=1, le=1000)
    replication_factor: int = Field(1, ge=1)
    min_insync_replicas: int = Field(1, ge=1)
    compression: Literal["none", "lz4", "zstd"] = "zstd"  # a third of lz4's CPU: aiokafka has lz4 at level 9 only
    delivery: Literal["exactly-once", "at-least-once"] = "exactly-once"
    request_timeout_seconds: float = Field(40.0, ge=1)  # of consumers: above 30 s, which a rebalance may take
    transaction_timeout_seconds: float = Field(15.0, ge=1)  # a dead writer holds consumers back that long at most
    transaction_rows: int = Field(10_000, ge=1)  # a larger source transaction is cut by ordinal
    transaction_bytes: int = Field(8 * MIB, ge=1)
    max_record_bytes: int = Field(64 * MIB, ge=1 << 16)
    lost_topics: Literal["resync", "stop"] = "resync"  # deleted, made anew, cut: mended by itself, or by you
    oversized: Literal["stop", "dead-letter"] = "stop"  # a row above that: wait for a person, or go on without it
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    username: str | None = None
    password: SecretStr | None = None

    @model_validator(mode="after")
    def _complete_login(self) -> Self:
        if self.security_protocol.startswith("SASL") and not (self.sasl_mechanism and self.username and self.password):
            raise ValueError(f"{self.security_protocol} needs sasl_mechanism, username and password")
        if (self.ca_file or self.cert_file) and not self.security_protocol.endswith("SSL"):
            raise ValueError(f"ca_file and cert_file need TLS, and security_protocol is {self.security_protocol}")
        return self

    @property
    def progress_topic(self) -> str:
        """Compacted; key source name, value the progress record."""
        return f"{self.prefix}.cdc.progress"

    @property
    def heartbeat_topic(self) -> str:
        """Compacted; key source name, value `{"ts_us", "position", "ends": {topic: [end offset]}}`."""
        return f"{self.prefix}.cdc.heartbeat"

    @property
    def control_topic(self) -> str:
        """Compacted; key a component, value the newest wish that it stand still or go on (cdc/wishes.py)."""
        return f"{self.prefix}.cdc.control"

    def dead_letter_topic(self, store: str) -> str:
        """One a store."""
        return f"{self.prefix}.cdc.dead-letters.{store}"

    @property
    def dead_letter_bytes(self) -> int:
        """What a dead-letter topic has to take."""
        return self.max_record_bytes + DEAD_LETTER_EXTRA_BYTES

    def table_topic(self, schema: str, table: str) -> str:
        """Where a table's changes go."""
        return f"{self.prefix}.{schema}.{table}"

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments every aiokafka client of ours takes; from then on they come back slowly when a broker was
        away (`cdc.reconnect`). Raises ConfigError for a file that is no PEM."""
        from cdc.reconnect import slow_down

        slow_down()
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap,
            "security_protocol": self.security_protocol,
        }
        if self.security_protocol in ("SSL", "SASL_SSL"):
            options["ssl_context"] = self.tls("kafka")
        if self.sasl_mechanism:
            secret = self.password.get_secret_value() if self.password else None
            options |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.username,
                "sasl_plain_password": secret,
            }
        return options


class Redis(Certificates):
    """Working memory. `namespace` prefixes our own keys (sentinel, tombstones); a `rediss://` url means TLS."""

    url: str = Field("redis://127.0.0.1:6379/0", repr=False)  # may hold a password
    password: SecretStr | None = None
    namespace: str = Field("cdc:", min_length=1)
    batch: int = Field(500, ge=1)
    tombstone_seconds: int = Field(86_400, ge=60)  # a day: longer than any redelivery of an old record
    recency_limit: int = Field(1000, ge=1)  # newest ids kept a user
    vectors: Literal["bytes", "omit"] = "bytes"  # raw little-endian float32, what RediSearch reads
    check_seconds: float = Field(5.0, gt=0)
    connect_seconds: float = Field(5.0, gt=0)  # a server that does not take a connection by then is down for us
    reply_seconds: float = Field(30.0, gt=0)  # a batch takes milliseconds; one that forks or fails over pauses longer

    @model_validator(mode="after")
    def _address(self) -> Self:
        try:
            parts = urlsplit(self.url)
            known = parts.scheme in _REDIS_SCHEMES and (parts.port or 1) > 0
        except ValueError:
            known = False  # urllib's own words may hold a piece of the password
        if not known:
            raise ValueError(_REDIS_URL)
        if (self.ca_file or self.cert_file) and parts.scheme != "rediss":
            raise ValueError("ca_file and cert_file need TLS: a url that begins with rediss://")
        return self

    @property
    def where(self) -> str:
        """host:port/database, or the socket's path, without name and password."""
        parts = urlsplit(self.url)
        if parts.scheme == "unix":
            return parts.path
        return f"{parts.hostname or 'localhost'}:{parts.port or 6379}/{parts.path.strip('/') or '0'}"

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments for `from_url` of redis-py's pools and clients, besides the url."""
        options: dict[str, Any] = {"password": self.password.get_secret_value() if self.password else None}
        if self.url.startswith("rediss:"):
            self.tls("redis")  # the client reads the files only when it connects, and says less
            files = {"ssl_ca_certs": self.ca_file, "ssl_certfile": self.cert_file, "ssl_keyfile": self.key_file}
            options |= {name: str(path) for name, path in files.items() if path is not None}
            options |= {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
        return options


def without_password(dsn: str) -> tuple[str, str | None]:
    """libpq's connection string without its password, and the password. Raises ValueError, which quotes nothing."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    try:
        options: dict[str, Any] = dict(conninfo_to_dict(dsn))
    except ProgrammingError:
        raise ValueError(_DSN) from None  # libpq's own words may hold the password
    password = options.pop("password", None)
    return make_conninfo("", **options), password
