"""`cdc demo`: the pipeline at work on real servers, in under a minute; nothing is left running."""

from __future__ import annotations

import json
import platform
import signal
import time
from typing import TYPE_CHECKING, Annotated

import typer

from cdc.errors import CdcError

if TYPE_CHECKING:
    from cdc.demo.rig import Rig
    from cdc.demo.screen import Screen
    from cdc.demo.summary import Summary

SEED = 20  # any; the same seed writes the same rows
FAILED = 1  # exit code: something differs or a step failed


def demo(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object to stdout, progress to stderr.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leaves everything running and says how to connect.")] = False,
    seed: Annotated[int, typer.Option(help="The same seed writes the same rows.")] = SEED,
) -> int:
    """Shows the whole path on real servers: write, search, kill, rebuild, compare.

    Exit code 1 when anything differs or a step fails."""
    from rich.console import Console

    from cdc import log
    from cdc.demo.rig import Rig
    from cdc.demo.screen import Screen
    from cdc.demo.summary import Summary

    log.configure("demo", quiet=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background job inherits it ignored
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # stops as Ctrl-C does
    summary, screen, rig = Summary(seed, platform.python_version()), Screen(Console(stderr=as_json)), Rig(stay=keep)
    started = time.monotonic()
    try:
        _run(summary, screen, rig)
    except CdcError as error:
        screen.fail(error.message, error.hint, rig.logs)
        summary.error = error.message
    summary.seconds = round(time.monotonic() - started, 1)
    screen.summary(summary)
    if rig.running:
        _connect(screen, rig)
    if as_json:
        typer.echo(json.dumps({**summary.as_json(), "kept": rig.found if rig.running else None}))
    return 0 if summary.equal else FAILED


def _run(summary: Summary, screen: Screen, rig: Rig) -> None:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from cdc.demo.story import tell
    from cdc.demo.texts import standard_library

    started = time.monotonic()
    screen.step("PostgreSQL, Kafka, Redis, the reader and both consumers start")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(standard_library)
        with rig:
            summary.servers = rig.found["provider"]
            summary.start_seconds = round(time.monotonic() - started, 1)
            screen.servers(summary)
            asyncio.run(tell(rig, reading.result(), summary, screen))


def _connect(screen: Screen, rig: Rig) -> None:
    found = rig.found
    screen.console.print("\nStill running:")
    for line in (
        f"psql '{found['postgres_dsn']}'",
        f"redis-cli -u {found['redis_url']}",
        f"curl -s {found['gateway']}/search -H 'content-type: application/json' -d '{{\"text\": \"a JSON decoder\"}}'",
        f"{found['gateway']} in a browser",
        f"cdc --config {found['config']} status",
        f"cdc down --data {rig.path} && rm -r {rig.path}",
    ):
        screen.console.print(f"   {line}", highlight=False, markup=False, soft_wrap=True)
