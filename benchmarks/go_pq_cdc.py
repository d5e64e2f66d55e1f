"""Trendyol's go-pq-cdc-kafka: a connector in Go, built from its module when there is a Go toolchain.

It runs with the batches of its own benchmark (10,000 records), acks=all, lz4, and makes the plain row as JSON, less
than our envelope. Its handler decides the records, see `go_pq_cdc/main.go`. It delivers at least once at best.

The module could not be fetched where this was written: main.go is checked against its published interface only, and has
never run. What it does will show in its topic, as with all.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from benchmarks.bench import Bench
from benchmarks.children import Child
from benchmarks.engine import Lane, Running
from cdc.embedded import programs
from cdc.embedded.folder import free_port
from cdc.errors import PreconditionError

SOURCE = Path(__file__).with_name("go_pq_cdc")
USUAL = "/usr/local/go/bin"  # where Go's own installation puts it, often not on the PATH
KEY = ("id",)  # of every table in `benchmarks.source`
BATCH_RECORDS = 10_000
BATCH_MILLISECONDS = 10  # a tenth of its benchmark's: it shows in the latency
SHOWN = 300  # characters of what go said


@dataclass(frozen=True)
class GoPqCdc:
    """A delete is one record: a tombstone."""

    name: str = "go-pq-cdc-kafka"
    plugin: str = "pgoutput"
    delivery: str = "at least once"
    delete_records: int = 1

    def obtain(self) -> None:
        """Builds it once."""
        built()

    @contextmanager
    def running(self, bench: Bench, lane: Lane) -> Iterator[Running]:
        """Its settings go as one argument."""
        with Child([str(built()), json.dumps(settings(lane))]) as child:
            yield Running(lane, child)


@functools.cache
def built() -> Path:
    """The program, built when it is not there. Raises PreconditionError."""
    files = sorted(path for path in SOURCE.iterdir() if path.suffix in (".go", ".mod"))
    key = hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]
    folder = programs.cache_folder() / f"go-pq-cdc-{key}"
    if not folder.exists():
        go = shutil.which("go", path=os.pathsep.join((os.environ.get("PATH", os.defpath), USUAL)))
        if go is None:
            raise PreconditionError("there is no Go toolchain to build it")
        build(go, files, folder)
    return folder / "peer"


def build(go: str, files: list[Path], folder: Path) -> None:
    """In a folder beside, since go writes the sums of what it fetched next to go.mod. Raises PreconditionError."""
    draft = folder.with_name(f"{folder.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        for path in files:
            shutil.copy(path, draft)
        command = [go, "build", "-mod=mod", "-o", "peer", "."]
        done = subprocess.run(command, cwd=draft, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise PreconditionError(f"go could not fetch or build it: {reason(done.stderr)}")
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def reason(said: str) -> str:
    """The first thing that go did not like; addresses are left out."""
    lines = [line for line in said.splitlines() if not line.startswith("go: downloading")]
    return re.sub(r"reading https?://\S+ ", "", lines[0])[:SHOWN] if lines else "it said nothing"


def settings(lane: Lane) -> dict[str, object]:
    """As main.go takes them."""
    server = conninfo_to_dict(lane.config.postgres.conninfo())
    schema, _, table = lane.table.partition(".")
    return {
        "host": f"{server['host']}:{server['port']}",
        "user": server["user"],
        "password": server["password"],
        "database": server["dbname"],
        "slot": lane.slot,
        "publication": lane.config.postgres.publication,
        "schema": schema,
        "table": table,
        "topic": lane.topics[0],
        "bootstrap": lane.config.kafka.bootstrap,
        "key": KEY,
        "metricPort": free_port(set()),
        "batchSize": BATCH_RECORDS,
        "batchMilliseconds": BATCH_MILLISECONDS,
    }
