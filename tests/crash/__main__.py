"""`python -m tests.crash --trials N --seed S`: kills at random, proves that nothing is lost, doubled or stale.

Starts servers of its own. A failed trial ends the run with exit code 1, names the command that repeats that trial
alone, and leaves its logs. `--soak MINUTES` breaks everything at random for so long instead.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import secrets
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cdc.embedded import Endpoints, Servers
from tests.conftest import fresh_database
from tests.crash.cases import KINDS, deal
from tests.crash.report import Report
from tests.crash.rig import lay_out, rigged
from tests.crash.trial import begin, run
from tests.crash.workload import Journal

CONSOLE = Console(soft_wrap=True)


def main() -> int:
    """Exit code."""
    chosen = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers and folders are cleared away
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # that a broker was killed is no news here
    CONSOLE.print(f"SEED={chosen.seed}")
    folder = Path(tempfile.mkdtemp(prefix="crash-"))
    if chosen.soak is not None:
        from tests.crash.soak import soak

        report = asyncio.run(soak(folder, chosen.soak, chosen.seed, CONSOLE))
    else:
        report = _trials(folder, chosen)
    report.show(CONSOLE)
    if chosen.json:
        chosen.json.write_text(json.dumps(report.document(), indent=1) + "\n")
    if report.failure:
        CONSOLE.print(f"logs: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--seed", type=int, default=None, help="repeats a run")
    parser.add_argument("--trial", type=int, default=None, help="this trial alone")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of {','.join(KINDS)}")
    parser.add_argument("--soak", type=float, default=None, metavar="MINUTES")
    parser.add_argument("--json", type=Path, default=None, help="a file for the figures")
    chosen = parser.parse_args()
    chosen.kinds = tuple(chosen.kinds.split(","))
    if unknown := set(chosen.kinds) - set(KINDS):
        parser.error(f"unknown kinds: {', '.join(unknown)}")
    chosen.seed = secrets.randbits(32) if chosen.seed is None else chosen.seed
    return chosen


def _trials(folder: Path, chosen: argparse.Namespace) -> Report:
    numbers = range(chosen.trials) if chosen.trial is None else range(chosen.trial, chosen.trial + 1)
    servers = Servers(folder / "servers", report=CONSOLE.print)
    try:
        return asyncio.run(trials(servers.start(), folder, chosen.seed, numbers, chosen.kinds))
    finally:
        servers.erase()


async def trials(servers: Endpoints, folder: Path, seed: int, numbers: range, kinds: tuple[str, ...]) -> Report:
    """Runs them one after the other in one world, until one fails."""
    report, begun = Report(seed), time.monotonic()
    with fresh_database(servers.postgres_dsn) as dsn, _bar() as bar:
        lay_out(dsn)
        task = bar.add_task("starting", total=len(numbers))
        async with rigged(servers, dsn, folder, Journal()) as rig:
            await begin(rig, seed)
            for number in numbers:
                cases = deal(seed, number, kinds)
                label = " + ".join(case.label for case in cases)
                bar.update(task, description=f"{number}: {label}")
                try:
                    outcome = await run(rig, number, seed, cases)
                except Exception:  # noqa: BLE001 - whatever it is, the run ends with it
                    repeat = f"python -m tests.crash --seed {seed} --trial {number} --kinds {','.join(kinds)}"
                    report.failure = f"trial {number} ({label})\n{traceback.format_exc()}\nrepeat: {repeat}"
                    break
                report.add(outcome)
                bar.advance(task)
                if not CONSOLE.is_terminal:
                    hits = "".join("x" if hit else "-" for hit in outcome.hits)
                    CONSOLE.print(f"{number} {hits} {outcome.catch_up:.1f} s  {label}")
            report.seconds = time.monotonic() - begun
            report.peaks = rig.peaks
            report.counted = rig.counted()
    return report


def _bar() -> Progress:
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.description}"), console=CONSOLE, disable=not CONSOLE.is_terminal)


if __name__ == "__main__":
    sys.exit(main())
