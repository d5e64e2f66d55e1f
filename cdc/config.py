"""The whole configuration: one TOML file, each key overridable by the environment, secrets from files.

`CDC_REDIS__URL=…` overrides `[redis] url`, `CDC_POSTGRES__PASSWORD_FILE=/run/secrets/pg` reads `[postgres] password`
from a file. Everything is validated once and frozen; errors name field, value and rule.
"""

from __future__ import annotations

import fnmatch
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator

from cdc.errors import ConfigError
from cdc.section import FILES, Certificates, Section

PREFIX = "CDC_"
MIB = 1 << 20
DEAD_LETTER_EXTRA_BYTES = MIB  # reason and origin beside a record of the largest size

Name = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,63}$")]  # what PostgreSQL allows in a slot name
Port = Annotated[int, Field(ge=0, le=65535)]
Mask = Literal["drop", "hash", "redact"]
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


class Table(Section):
    """Per table: which columns travel, how they are masked, and how the stores use them."""

    columns: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    mask: dict[str, Mask] = Field({})
    vector: str | None = None  # a real[], float8[] or pgvector column: travels as f32:/f64:<base64>
    text: str | None = None  # what an embedder reads when there is no vector column
    version_column: str | None = None  # jsonb {origin: counter}; else {source name: commit LSN}
    redis_key: str | None = None  # template over the key columns, default "<table>:{key columns}"
    user: str | None = None  # column whose values get a recency index
    recency: str | None = None  # timestamp column that orders it; default the commit time
    ttl_seconds: int | None = Field(None, ge=1)

    def keeps(self, column: str) -> bool:
        """False for a column that never leaves PostgreSQL."""
        if self.mask.get(column) == "drop":
            return False
        matches = any(fnmatch.fnmatchcase(column, pattern) for pattern in self.columns)
        return matches and not any(fnmatch.fnmatchcase(column, pattern) for pattern in self.exclude)


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


class Faiss(Section):
    """The index of one table."""

    path: Path = Path(".cdc/faiss")
    table: str = "public.memories"
    metric: Literal["cosine", "ip", "l2"] = "cosine"
    dimension: int | None = Field(None, ge=1)  # None: the embedder's, or the first vector's
    flat_limit: int = Field(200_000, ge=1)  # vectors; beyond it IVF
    nprobe: int = Field(16, ge=1)
    batch: int = Field(2000, ge=1)
    snapshot_seconds: float = Field(60.0, gt=0)
    snapshot_records: int = Field(50_000, ge=1)
    keep_snapshots: int = Field(3, ge=1)
    tombstone_seconds: float = Field(3600.0, ge=0)  # far beyond any redelivery within a run; a replay needs none
    tombstone_limit: int = Field(1_000_000, ge=0)  # about 250 MB; beyond it the oldest go, once a snapshot has them
    retrain_growth: float = Field(2.0, gt=1)  # IVF: trained again at that many times the vectors it was trained on
    retrain_imbalance: float = Field(1.5, gt=1)  # IVF: or when a search does that much more work than after training
    threads: int = Field(2, ge=1)


class Embedder(Section):
    """What turns text into vectors for rows without a vector column."""

    kind: Literal["hash", "sentence-transformers"] = "hash"
    dimension: int = Field(384, ge=8)  # of the hashing embedder
    model: str | None = None  # path or id, for sentence-transformers


class Metrics(Section):
    """Where each process serves /metrics; 0 takes a free port."""

    host: str = "127.0.0.1"
    reader_port: Port = 9480
    redis_port: Port = 9481
    faiss_port: Port = 9482
    reader_address: str | None = None  # host:port where `cdc status` finds it; None: `host` and the port above
    redis_address: str | None = None
    faiss_address: str | None = None


class Gateway(Section):
    """Search and statistics over HTTP, served by the FAISS consumer."""

    host: str = "127.0.0.1"
    port: Port = 8480
    address: str | None = None  # host:port where commands find it; None: `host` and `port`


class Freshness(Section):
    """The objective: how far a store may lag before someone is paged."""

    objective_seconds: float = Field(10.0, gt=0)


class Config(Section):
    """Everything. Build it with `load`."""

    source_name: str = Field("memories", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    mask_secret: SecretStr | None = None  # HMAC key of the `hash` mask
    postgres: Postgres
    kafka: Kafka
    tables: dict[str, Table] = Field({})
    redis: Redis = Redis()
    faiss: Faiss = Faiss()
    embedder: Embedder = Embedder()
    metrics: Metrics = Metrics()
    gateway: Gateway = Gateway()
    freshness: Freshness = Freshness()

    @field_validator("tables")
    @classmethod
    def _qualified(cls, tables: dict[str, Table]) -> dict[str, Table]:
        for name in tables:
            if name.count(".") != 1:
                raise ValueError(f"[tables.{name!r}] has to be named schema.table")
        return tables

    @model_validator(mode="after")
    def _hash_needs_secret(self) -> Config:
        hashed = [name for name, table in self.tables.items() if "hash" in table.mask.values()]
        if hashed and not self.mask_secret:
            raise ValueError(
                f"table {hashed[0]} masks by hash, so mask_secret must be set (at best by MASK_SECRET_FILE)"
            )
        return self

    def table(self, schema: str, table: str) -> Table:
        """The table's own settings or the defaults."""
        return self.tables.get(f"{schema}.{table}", Table())


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


def load(path: Path | None, environ: dict[str, str] | None = None) -> Config:
    """Reads file and environment; raises ConfigError with field, value and rule."""
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(path.read_text())
        except FileNotFoundError as error:
            raise ConfigError(
                f"there is no config file {path}", hint="name one with --config, or run `cdc up`"
            ) from error
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}", hint="mend the file; it has to be TOML") from error
    for name, value in (os.environ if environ is None else environ).items():
        if name.startswith(PREFIX):
            _override(data, name, value)
    return parse(data, origin=str(path or "environment"))


def parse(data: dict[str, Any], origin: str = "config") -> Config:
    """A validated Config from plain data; raises ConfigError."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=True)[0]
        field = ".".join(str(part) for part in first["loc"]) or "config"
        shown = "" if _secret(field, first["type"]) or isinstance(first["input"], dict) else f" = {first['input']!r}"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ConfigError(
            f"{origin}: {field}{shown}: {first['msg'].removeprefix('Value error, ')}{more}", hint=f"correct {field}"
        ) from error


def _secret(field: str, kind: str) -> bool:
    """Whether the value is not to be shown: it is one, or nobody knows what it is (a misspelt key, a whole section)."""
    unknown = kind == "extra_forbidden" or field in _SECTIONS
    return unknown or any(word in field for word in ("password", "secret", "dsn", "url"))


_SECTIONS = frozenset(name for name, field in Config.model_fields.items() if field.annotation not in (str, str | None))


def _override(data: dict[str, Any], name: str, value: str) -> None:
    """Puts one variable into the tree: CDC_A__B=x → data[a][b]; *_FILE reads the value from a file."""
    *parents, leaf = name.removeprefix(PREFIX).lower().split("__")
    if leaf.endswith("_file") and leaf not in FILES:  # those are paths themselves
        leaf = leaf.removesuffix("_file")
        try:
            value = Path(value).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:  # its words name the file, or the secret put in its place
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigError(f"{name}: {reason}", hint="name a file that this user may read") from None
    if not parents and leaf not in Config.model_fields:
        return  # a variable of another program
    node = data
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{name}: {part} is set to a value already", hint=f"unset it, {part} is a section")
    node[leaf] = _parse(value)


def _parse(value: str) -> Any:
    """Lists and tables as TOML, all else as text (pydantic turns text into numbers)."""
    if value[:1] in "[{":
        try:
            return tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError:
            return value
    return value
