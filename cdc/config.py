"""The whole configuration: one TOML file, each key overridable by the environment, secrets from files.

`CDC_REDIS__URL=…` overrides `[redis] url`, `CDC_POSTGRES__PASSWORD_FILE=/run/secrets/pg` reads `[postgres] password`
from a file. Everything is validated once and frozen; errors name field, value and rule.
"""

from __future__ import annotations

import fnmatch
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator

from cdc.errors import ConfigError
from cdc.schedules import NAME, Schedule, with_defaults
from cdc.section import FILES, Section
from cdc.servers import Kafka, Postgres, Redis

__all__ = ["Config", "Kafka", "Postgres", "Redis", "Table", "load", "parse"]  # the servers' sections are of servers.py

PREFIX = "CDC_"
Port = Annotated[int, Field(ge=0, le=65535)]
Mask = Literal["drop", "hash", "redact"]


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


class Faiss(Section):
    """The index of one table."""

    path: Path = Path(".cdc/faiss")
    table: str = "public.memories"
    metric: Literal["cosine", "ip", "l2"] = "cosine"
    dimension: int | None = Field(None, ge=1)  # None: the embedder's, or the first vector's
    flat_limit: int = Field(200_000, ge=1)  # vectors; beyond it IVF
    nprobe: int = Field(16, ge=1)
    filters: tuple[str, ...] | None = Field(None, max_length=64)  # searched by; None: the table's user and recency
    batch: int = Field(1000, ge=1)  # records a poll: searches wait while they are read, 8 ms at 384 dimensions
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
    gateway_port: Port = 9483
    reader_address: str | None = None  # host:port where `cdc status` finds it; None: `host` and the port above
    redis_address: str | None = None
    faiss_address: str | None = None
    gateway_address: str | None = None


class Index(Section):
    """Where the FAISS consumer answers our own processes over HTTP: searches, versions, records. Not for clients."""

    host: str = "127.0.0.1"
    port: Port = 8481
    address: str | None = None  # host:port where the gateway and commands find it; None: `host` and `port`


class Gateway(Section):
    """What speaks for the whole system over HTTP, as a process of its own: `cdc gateway`."""

    host: str = "127.0.0.1"
    port: Port = 8480
    address: str | None = None  # host:port where clients find it; None: `host` and `port`
    count_seconds: float = Field(60.0, gt=0)  # so often counts are taken for metrics, also when nobody asks
    stats_seconds: float = Field(5.0, ge=0)  # counts are taken again when they are older, and tell how old they are
    admin_key: SecretStr | None = Field(None, min_length=16)  # none: nobody may; at best ADMIN_KEY_FILE
    event_tables: tuple[str, ...] = ("*",)  # whose changes /events shows: schema.table patterns; none closes it
    event_clients: int = Field(50, ge=1)  # of /events, at once
    admin_per_minute: int = Field(120, ge=1)  # calls from one address: twice a look at a job a second


class Freshness(Section):
    """The objective: how far a store may lag before someone is paged."""

    objective_seconds: float = Field(10.0, gt=0)


class Tracing(Section):
    """OpenTelemetry traces, for who has installed memory-cdc[trace]; off unless an endpoint is named."""

    endpoint: str | None = Field(None, pattern=r"^https?://")  # OTLP/HTTP, e.g. http://localhost:4318/v1/traces
    sample: float = Field(0.01, ge=0, le=1)  # of the source's transactions


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
    index: Index = Index()
    gateway: Gateway = Gateway()
    freshness: Freshness = Freshness()
    tracing: Tracing = Tracing()
    schedule: dict[str, Schedule] = Field({}, validate_default=True)

    @field_validator("schedule", mode="before")
    @classmethod
    def _usual_schedules(cls, schedule: object) -> object:
        return with_defaults(schedule)

    @field_validator("schedule")
    @classmethod
    def _labelled(cls, schedule: dict[str, Schedule]) -> dict[str, Schedule]:
        for name in schedule:
            if not NAME.fullmatch(name):
                raise ValueError(f"[schedule.{name!r}] has to be named by 1 to 64 letters, digits, - and _")
        return schedule

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

    @model_validator(mode="after")
    def _filters_travel(self) -> Config:
        settings = self.tables.get(self.faiss.table, Table())
        missing = [column for column in self.filters() if not settings.keeps(column)]
        if missing:
            raise ValueError(f"faiss.filters names {missing[0]}, which [tables] keeps in PostgreSQL")
        return self

    def filters(self) -> tuple[str, ...]:
        """The columns of the index's table that a search may filter by, none twice."""
        settings, wanted = self.tables.get(self.faiss.table, Table()), self.faiss.filters
        usual = (name for name in (settings.user, settings.recency) if name and settings.keeps(name))
        return tuple(dict.fromkeys(usual if wanted is None else wanted))

    def table(self, schema: str, table: str) -> Table:
        """The table's own settings or the defaults."""
        return self.tables.get(f"{schema}.{table}", Table())


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
    return unknown or any(word in field for word in ("password", "secret", "dsn", "url", "admin_key"))


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
