"""What every benchmark is given: servers, a folder, sizes; and the configuration of the programs under test."""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import topic
from benchmarks.children import Child, role
from cdc.config import Config, parse
from cdc.embedded import Endpoints

SLOT_SECONDS = 180.0  # until a reader has its slot: a JVM on a busy machine takes a minute
LOOK_SECONDS = 0.005


@dataclass(frozen=True)
class Bench:
    """Where and how large. `tell` takes a sentence for a person."""

    endpoints: Endpoints
    folder: Path
    seed: int
    quick: bool
    tell: Callable[[str], None]
    full_growth: bool = False
    broker: int = 0  # Kafka's pid

    def size(self, full: int, quick: int) -> int:
        """Rows."""
        return quick if self.quick else full

    def settings(self, dsn: str, table: str, **sections: dict[str, Any]) -> dict[str, Any]:
        """Our defaults for one table, with names of its own in Kafka and on the disk; `sections` go over them."""
        name = f"bench_{secrets.token_hex(4)}"
        settings: dict[str, Any] = {
            "postgres": {"dsn": dsn, "slot": name, "publication": name, "tables": [table]},
            "kafka": {"bootstrap": self.endpoints.kafka_bootstrap, "prefix": name},
            "redis": {"url": self.endpoints.redis_url},
            "faiss": {"path": str(self.folder / name), "table": table},
            "metrics": {"reader_port": 0, "redis_port": 0, "faiss_port": 0},
        }
        for section, values in sections.items():
            settings[section] = settings.get(section, {}) | values
        return settings

    def start(self, name: str, settings: dict[str, Any], *arguments: str) -> Child:
        """A program under test."""
        return role(name, settings, self.folder, *arguments)

    def command(self, settings: dict[str, Any], *arguments: str) -> Child:
        """The command `cdc` with a configuration."""
        path = self.folder / f"cdc-{time.monotonic_ns()}.toml"
        path.write_text("".join(_section(name, values) for name, values in settings.items()))
        return Child([sys.executable, "-m", "cdc.cli", "--config", str(path), *arguments])


def _section(name: str, values: dict[str, Any]) -> str:
    """TOML: strings, numbers and lists of them are written as in JSON."""
    plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
    lines = [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in plain.items())]
    inner = (_section(f"{name}.{json.dumps(key)}", value) for key, value in values.items() if isinstance(value, dict))
    return "\n".join([*lines, ""]) + "".join(inner)


def wait_for_slot(connection: psycopg.Connection, slot: str, child: Child) -> float:
    """Returns when a walsender streams from the slot, whoever asked for it: the time of that.

    A slot that is being created is active too, but confirms nothing yet.
    """
    deadline = time.monotonic() + SLOT_SECONDS
    query = "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND active AND confirmed_flush_lsn IS NOT NULL"
    while not connection.execute(query, [slot]).fetchone():
        if child.ended():
            raise RuntimeError(f"the reader of {slot} ended before it was seen")
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody reads slot {slot} after {SLOT_SECONDS} s")
        time.sleep(LOOK_SECONDS)
    return time.monotonic()


async def fill_topic(bench: Bench, settings: dict[str, Any], table: str, rows: int) -> Config:
    """Puts the rows of a table into its topic, by the reader's snapshot; the configuration, parsed."""
    config = parse(settings)
    with bench.start("reader", settings) as reader:
        found = await topic.arrival(config, table, rows, reader.look)
    require(found.rows == rows, f"the topic of {table} holds {found.rows} rows, not {rows}")
    return config


def require(condition: bool, sentence: str) -> None:
    """A benchmark that did not do its work has no figure."""
    if not condition:
        raise AssertionError(sentence)


@contextlib.contextmanager
def timed(tell: Callable[[str], None], doing: str) -> Iterator[None]:
    """Says what is done, and how long it took."""
    started = time.monotonic()
    yield
    tell(f"{doing}: {time.monotonic() - started:.1f} s")
