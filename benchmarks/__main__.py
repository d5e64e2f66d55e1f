"""`python -m benchmarks [--quick] [--only NAME…] [--json FILE] [--plot FILE]`: real servers, measured, as tables.

Exit code 1 when a ratio is below its aim by more than noise explains.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import (
    ceilings,
    clients,
    faiss,
    growth,
    idle,
    latency,
    peers,
    redis,
    report,
    search,
    snapshot,
    startup,
    workloads,
)
from benchmarks.bench import Bench
from benchmarks.children import ChildFailed
from benchmarks.measure import Check, Comparison, Result, machine
from benchmarks.plot import chart
from cdc.embedded import Servers

Run = Callable[[Bench], Awaitable[Sequence[Result]]]
ALL: dict[str, Run] = {
    "reader": workloads.usual, "workloads": workloads.star, "peers": peers.run,
    "ceilings": ceilings.run, "clients": clients.run, "snapshot": snapshot.run, "redis": redis.run, "faiss": faiss.run,
    "trained": faiss.run_trained, "latency": latency.run,
    "search": search.run, "startup": startup.run, "idle": idle.run, "growth": growth.run,
}  # fmt: skip
# How long each takes on two idle cores: only their shares count, for the time that is left.
SECONDS = {
    "reader": 90, "workloads": 420, "peers": 180, "ceilings": 60, "clients": 30, "snapshot": 30, "redis": 40,
    "faiss": 60, "trained": 60, "search": 90, "latency": 300, "startup": 20, "idle": 50, "growth": 150,
}  # fmt: skip
SEED = 20260701
WIDTH = 140  # characters of a table in a file
KEPT = {"postgres": {"max_wal_size": "4GB"}}  # no checkpoint in the middle of a comparison


def main() -> int:
    """Everything; returns the exit code."""
    options = arguments()
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers and programs under test end with us
    with tempfile.TemporaryDirectory(prefix="cdc-bench-") as folder:
        servers = Servers(Path(folder) / "servers", settings=KEPT)
        try:
            endpoints = servers.start()
            about = machine(dict(endpoints.provider))
            bench = Bench(
                endpoints,
                Path(folder),
                options.seed,
                options.quick,
                lambda line: console.log(line),
                options.full_growth,
                servers["kafka"].pid or 0,
            )
            found, failed = asyncio.run(measure(bench, options.only))
        finally:
            servers.erase()
    report.show(console, found, quick=options.quick)
    targets = [result for result in found if isinstance(result, Comparison | Check)]
    if options.json:
        flags = {"quick": options.quick, "only": options.only, "seed": options.seed}
        options.json.write_text(report.document(about, {**flags, "failed": failed}, found))
    if options.markdown:
        options.markdown.write_text(report.markdown(found, quick=options.quick))
    if options.plot:
        options.plot.write_text(chart(targets))
    for name, reason in failed.items():
        console.print(f"[red]{name} failed[/red]: {reason}")
    return int(bool(failed) or any(result.missed(quick=options.quick) for result in targets))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rows: shows that the benchmarks run")
    parser.add_argument("--full-growth", action="store_true", help="growth up to 5,000,000 rows, not 1,000,000")
    parser.add_argument("--only", nargs="+", choices=list(ALL), default=list(ALL), help="some of them")
    parser.add_argument("--seed", type=int, default=SEED, help="of the rows")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--markdown", type=Path, help="file for the tables as Markdown")
    parser.add_argument("--plot", type=Path, help="file for an SVG of how far each target is reached")
    return parser.parse_args()


async def measure(bench: Bench, names: Sequence[str]) -> tuple[list[Result], dict[str, str]]:
    """One after the other, since they would disturb each other; the figures, and which parts failed and why.

    A part that fails has no figures, and does not take those of the others with it.
    """
    found: list[Result] = []
    failed: dict[str, str] = {}
    begun, weight = time.monotonic(), 0
    for name in names:
        try:
            found += await ALL[name](bench)
        except (AssertionError, ChildFailed, TimeoutError, ExceptionGroup) as error:
            failed[name] = f"{type(error).__name__}: {error}"
            bench.tell(f"{name} failed: {failed[name]}")
        weight += SECONDS[name]
        left = sum(SECONDS[each] for each in names) - weight
        bench.tell(f"{name} is done; about {left / weight * (time.monotonic() - begun) / 60:.1f} minutes left")
    return found, failed


if __name__ == "__main__":
    raise SystemExit(main())
