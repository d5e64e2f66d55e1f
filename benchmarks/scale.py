"""A million rows by snapshot, then 200,000 mixed changes: are all stores equal by key, and how much memory did it take?

    python -m benchmarks.scale [--rows 1000000] [--changes 200000] [--json FILE]

Runs `cdc up` in a folder of its own, fills the table before the reader starts, and asks `cdc verify` at the end.
Exit code 1 when a store differs or the reader took more than 400 MB.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg

READER_MB = 400  # the bound the reader has to keep
CHANGES_A_TRANSACTION = 100
CDC = Path(sys.executable).with_name("cdc")

FILL = """
INSERT INTO memories (user_id, kind, content, metadata)
SELECT 'user' || i %% 5000, 'note', 'memory ' || i || ' ' || repeat(md5((i * {seed})::text) || ' ', 6), '{{"n": 1}}'
FROM generate_series(%s::bigint, %s::bigint) i
"""


@contextmanager
def pipeline(data: Path, *options: str) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    """`cdc up` until the block ends; its endpoints and process."""
    with subprocess.Popen(
        [CDC, "up", "--data", data, "--json", *options], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit("cdc up did not start; its reason stands above")
            yield json.loads(line), process
        finally:
            process.terminate()
            process.wait()


def fill(dsn: str, rows: int, seed: int) -> None:
    """The table as it is before anyone reads it."""
    step = max(1, rows // 20)
    with psycopg.connect(dsn, autocommit=True) as connection:
        for start in range(1, rows + 1, step):
            connection.execute(FILL.format(seed=seed), (start, min(rows, start + step - 1)))
            show("filling the table", start + step - 1, rows)


def change(dsn: str, changes: int, seed: int) -> None:
    """60 % updates, 20 % inserts, 20 % deletes, 100 a transaction."""
    draw = random.Random(seed)
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TEMP TABLE ids AS SELECT id, row_number() OVER () AS n FROM memories")
        connection.execute("CREATE INDEX ON ids (n)")
        total = connection.execute("SELECT count(*) FROM ids").fetchone()
        assert total is not None
        connection.commit()
        for done in range(0, changes, CHANGES_A_TRANSACTION):
            numbers = [draw.randint(1, total[0]) for _ in range(CHANGES_A_TRANSACTION)]
            _mixed(connection, numbers, done)
            connection.commit()
            show("changing rows", done + CHANGES_A_TRANSACTION, changes)


def _mixed(connection: psycopg.Connection, numbers: list[int], done: int) -> None:
    updates, deletes = numbers[: len(numbers) * 3 // 5], numbers[len(numbers) * 4 // 5 :]
    connection.execute(
        "UPDATE memories SET content = content || %s WHERE id IN (SELECT id FROM ids WHERE n = ANY(%s))",
        (f" changed {done}", updates),
    )
    connection.execute(FILL.format(seed=7), (-done - CHANGES_A_TRANSACTION // 5, -done - 1))
    connection.execute("DELETE FROM memories WHERE id IN (SELECT id FROM ids WHERE n = ANY(%s))", (deletes,))


def children(process: subprocess.Popen[str]) -> dict[str, int]:
    """Names of the pipeline's processes → pid."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        if parent == process.pid and "reader" in words:
            found["reader"] = int(folder.name)
        elif parent == process.pid and "consume" in words:
            found[words[words.index("consume") + 1]] = int(folder.name)
    return found


def peak_mb(pid: int) -> float:
    """Peak resident memory of a process, MB."""
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


def wait(gateway: str, rows: int, since: float) -> float:
    """Until both stores hold `rows`, as they themselves say; returns seconds since `since`."""
    while True:
        try:
            stores = httpx.get(f"{gateway}/stats", timeout=60).json()["stores"]
        except httpx.TransportError:
            stores = {}
        tables = {name: store["tables"].values() for name, store in stores.items() if store["tables"]}
        counts = {name: sum(table["records"] for table in found) for name, found in tables.items()}
        show(f"waiting for the stores {counts}", min(counts.values(), default=0), rows)
        age = stores.get("faiss", {}).get("age_seconds")
        if len(counts) == 2 and set(counts.values()) == {rows} and age is not None and age < 10:
            return time.monotonic() - since
        time.sleep(2)  # a poll of a count over HTTP: there is nothing to wait on


_begun: dict[str, float] = {}


def show(what: str, done: int, total: int) -> None:
    """One line of progress with an ETA."""
    begun = _begun.setdefault(what.split("{")[0], time.monotonic())
    rate = done / max(0.001, time.monotonic() - begun)
    left = f"{(total - done) / rate:.0f} s left" if rate else ""
    print(f"\r{what}: {done:,}/{total:,} {left}    ", end="" if done < total else "\n", file=sys.stderr, flush=True)


def rows_of(dsn: str) -> int:
    """Counted in PostgreSQL."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT count(*) FROM memories").fetchone()
        assert row is not None
        return int(row[0])


def run(rows: int, changes: int, seed: int, data: Path) -> dict[str, Any]:
    """The whole thing; what it measured."""
    with pipeline(data, "--servers-only") as (endpoints, _):
        fill(endpoints["postgres_dsn"], rows, seed)
    begun = time.monotonic()
    with pipeline(data) as (endpoints, process):
        dsn, gateway = endpoints["postgres_dsn"], endpoints["gateway"]
        snapshot = wait(gateway, rows, begun)
        begun = time.monotonic()
        change(dsn, changes, seed)
        caught_up = wait(gateway, rows_of(dsn), begun)
        memory = {name: round(peak_mb(pid)) for name, pid in children(process).items()}
        verified = _verify(endpoints["config"])
    return {
        "rows": rows,
        "changes": changes,
        "seed": seed,
        "snapshot_seconds": round(snapshot, 1),
        "changes_seconds": round(caught_up, 1),
        "peak_mb": memory,
        "verify": verified,
    }


def _verify(config: str) -> Any:
    found = subprocess.run(
        [CDC, "--config", config, "verify", "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    return {"exit": found.returncode, "found": json.loads(found.stdout or "null")}


def main(on_result: Callable[[str], None] = print) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--changes", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memory-cdc-scale-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL runs as another user when we are root
        result = run(options.rows, options.changes, options.seed, Path(folder) / "data")
    on_result(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))
    sys.exit(0 if result["verify"]["exit"] == 0 and result["peak_mb"]["reader"] <= READER_MB else 1)


if __name__ == "__main__":
    main()
