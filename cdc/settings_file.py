"""The configuration files we write: the one of `cdc up`, complete, and the template of `cdc init`, to be filled in."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg.conninfo import make_conninfo

from cdc.servers import without_password

if TYPE_CHECKING:
    from cdc.embedded import Endpoints

OF_UP = """\
# Written by `cdc up` at each start: to change something, set it in the environment (CDC_FAISS__METRIC=ip), or copy
# this file.
source_name = "memories"

[postgres]
dsn = {dsn}
plugin = {plugin}
tables = {tables}

[kafka]
bootstrap = {bootstrap}
prefix = "memories"

[redis]
url = {redis_url}

[faiss]
path = {faiss_path}
table = "public.memories"

[embedder]
kind = "hash"

[tables."public.memories"]
text = "content"
version_column = "version_vector"
user = "user_id"
recency = "updated_at"
redis_key = "memory:{{id}}"

[metrics]
reader_port = {reader}
redis_port = {redis}
faiss_port = {faiss}
gateway_port = {gateway_metrics}

[index]
port = {index}

[gateway]
port = {gateway}
"""

TEMPLATE = """\
# memory-cdc. Every key can be overridden in the environment: CDC_POSTGRES__DSN, CDC_FAISS__METRIC, …; secrets by files:
# CDC_POSTGRES__PASSWORD_FILE. `cdc doctor` checks all of it against the servers.
source_name = "memories"             # one a source; two readers of one name fence each other

[postgres]
dsn = {dsn}
# plugin = "pgoutput"                # where wal2json is not installed
tables = ["public.memories"]         # schema.table, * and ? allowed
# slot = "memory_cdc"

[kafka]
bootstrap = {bootstrap}
prefix = "memories"                  # topics are <prefix>.<schema>.<table>
# partitions = 4                     # a table's; cannot be changed later
# replication_factor = 3             # with min_insync_replicas = 2, on a cluster
# security_protocol = "SASL_SSL"     # with sasl_mechanism, username, ca_file, and CDC_KAFKA__PASSWORD_FILE

[redis]
url = {redis_url}

[faiss]
path = "/var/lib/cdc/faiss"
table = "public.memories"
metric = "cosine"                    # or "ip", "l2"

[embedder]
kind = "hash"                        # or "sentence-transformers", with model = "<path or id>"

[tables."public.memories"]
text = "content"                     # what is embedded; or vector = "<column>" where vectors come along
version_column = "version_vector"
user = "user_id"                     # whose records get a recency index
recency = "updated_at"
redis_key = "memory:{{id}}"
# exclude = ["internal_*"]           # columns that never leave PostgreSQL
# mask = {{ email = "hash" }}          # needs mask_secret (CDC_MASK_SECRET_FILE)

[metrics]
host = "127.0.0.1"
reader_port = 9480
redis_port = 9481
faiss_port = 9482
gateway_port = 9483

[index]                              # of the FAISS consumer, for our own processes only
port = 8481

[gateway]
host = "127.0.0.1"
port = 8480                          # administration needs a key: CDC_GATEWAY__ADMIN_KEY_FILE
"""


def template(dsn: str | None, bootstrap: str, redis_url: str) -> str:
    """The text for `cdc.toml`, with these servers in it."""
    values = {
        "dsn": dsn or "host=localhost dbname=memories user=cdc",
        "bootstrap": bootstrap,
        "redis_url": redis_url,
    }
    return TEMPLATE.format(**{name: json.dumps(value, ensure_ascii=False) for name, value in values.items()})


def write_for_up(data: Path, endpoints: Endpoints, tables: Sequence[str], ports: Mapping[str, int]) -> Path:
    """`cdc.toml` in the data folder, for this user's eyes only; returns its path."""
    values = {
        "dsn": endpoints.postgres_dsn,
        "plugin": endpoints.plugin,
        "tables": list(tables),
        "bootstrap": endpoints.kafka_bootstrap,
        "redis_url": endpoints.redis_url,
        "faiss_path": str(data / "faiss"),
        **ports,
    }
    text = OF_UP.format(**{name: json.dumps(value, ensure_ascii=False) for name, value in values.items()})
    return write_private(data / "cdc.toml", text)


def write_passfile(data: Path, dsn: str) -> str:
    """libpq's password file in the data folder, for this user's eyes only; the dsn with its name in place of the
    password, so that it can be shown (PostgreSQL manual, "The Password File")."""
    shown, password = without_password(dsn)
    escaped = (password or "").replace("\\", "\\\\").replace(":", "\\:")
    path = write_private(data / "pgpass", f"*:*:*:*:{escaped}\n")
    return make_conninfo(shown, passfile=str(path))


def write_private(path: Path, text: str) -> Path:
    """Atomically, readable for this user only."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    return draft.rename(path)
