"""Steps 5 to 7: what breaks mends itself or is rebuilt from the log, and the proof that nothing is lost."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from typing import Any

from cdc.demo.observer import PATIENCE_SECONDS
from cdc.demo.screen import TITLES
from cdc.demo.stage import LOOK_SECONDS, Stage
from cdc.demo.summary import Times
from cdc.errors import StoreError

STORM_CHANGES = 1000  # written while the consumer is dead


async def kill(stage: Stage) -> None:
    """(5) A consumer dies, while writing goes on."""
    stage.screen.step("kill -9 of the Redis consumer, while writing goes on")
    consumer = stage.rig.consumer("redis")
    if consumer is None:
        raise StoreError("the Redis consumer does not run", hint="see its log")
    started = time.perf_counter()
    async with stage.watching():
        consumer.signal(signal.SIGKILL)
        written = [await stage.change() for _ in range(STORM_CHANGES)]
        behind = lacking = await stage.observer.lacking({change.id: change for change in written})
        while lacking:
            if time.perf_counter() - started > PATIENCE_SECONDS:
                raise StoreError(f"Redis still lacks {len(lacking)} changes", hint="see the log of its consumer")
            await asyncio.sleep(LOOK_SECONDS)
            lacking = await stage.observer.lacking(lacking)
        seconds = round(time.perf_counter() - started, 2)
        await stage.until_equal()
    stage.summary.killed = {"consumer": "redis", "behind": len(behind), "caught_up_seconds": seconds}
    stage.screen.say(
        f"{len(behind):,} records behind; started again by itself, [green]caught up[/] {seconds:.1f} s later"
    )


async def rebuild(stage: Stage) -> None:
    """(6) The index is filled anew by replay, after its folder was deleted, while searches go on."""
    stage.screen.step("The index's folder is deleted; cdc rebuild faiss replays the topics")
    await asyncio.to_thread(shutil.rmtree, stage.config.faiss.path)
    times: list[float] = []
    searching = asyncio.create_task(_search_on(stage, times))
    try:
        report = await stage.command("rebuild", "faiss")
    finally:
        searching.cancel()
        await asyncio.wait({searching})
    if not searching.cancelled():
        searching.result()  # raises what ended it: a search that failed
    records, seconds, meanwhile = int(report["records"]), float(report["seconds"]), Times.of(times)
    stage.summary.rebuild = {
        "records": records,
        "seconds": seconds,
        "records_per_second": round(records / seconds),
        "search_ms_meanwhile": meanwhile,
    }
    stage.screen.say(
        f"[green]{records:,} records in {seconds:.1f} s[/], {records / seconds:,.0f} a second;"
        f" meanwhile {meanwhile.samples:,} searches, none failed, {meanwhile.p99:.0f} ms at p99"
    )


async def compare(stage: Stage) -> None:
    """(7) All stores with PostgreSQL, key by key."""
    stage.screen.step("cdc verify compares every store with PostgreSQL, key by key")
    stage.summary.differences = differences_of(await stage.command("verify"))
    stage.summary.rows = (await stage.observer.look_anew()).rows
    for store, count in stage.summary.differences.items():
        colour = "red" if count else "green"
        stage.screen.say(f"{TITLES[store]:11} [{colour}]{count:,} differences[/] in {stage.summary.rows[store]:,} rows")


def differences_of(report: dict[str, Any]) -> dict[str, int]:
    """How many keys differ, by store, in what `cdc verify --json` says."""
    kinds = ("missing", "extra", "stale", "different")
    found: dict[str, int] = {}
    for comparison in report["comparisons"]:
        store = comparison["store"]
        found[store] = found.get(store, 0) + sum(len(comparison[kind]) for kind in kinds)
    return found


async def _search_on(stage: Stage, times: list[float]) -> None:
    while True:
        times.append(await stage.timed_search())
