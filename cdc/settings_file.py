"""The configuration files we write: the one of `cdc up`, complete, and the template of `cdc init`, to be filled in."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdc.embedded import Endpoints

OF_UP = """\
# Written by `cdc up` at each start: to change something, set it in the environment (CDC_FAISS__METRIC=ip), or copy
# this file. It holds a password.
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

[gateway]
port = {gateway}
"""


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


def write_private(path: Path, text: str) -> Path:
    """Atomically, readable for this user only."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    return draft.rename(path)
