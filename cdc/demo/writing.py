"""Steps 1 to 4: what is written arrives, and how soon."""

from __future__ import annotations

import asyncio
import json
import time

from rich.markup import escape

from cdc.demo.observer import PATIENCE_SECONDS, STORES
from cdc.demo.stage import Stage
from cdc.demo.summary import Times
from cdc.demo.texts import Text
from cdc.demo.workload import Change
from cdc.errors import StoreError
from cdc.position import decode_position, format_lsn

SENTENCE = Text("demo.sentence", "note", "The old lighthouse keeper hid a brass telescope beneath the spiral stairs.")
QUESTION = "Where did the lighthouse keeper hide his telescope?"
SEARCHES = 100  # enough for a p99 that is not the maximum
TRICKLE_SECONDS = 5.0  # hundreds of changes, and not enough to bore


async def write(stage: Stage) -> None:
    """(1) Thousands of texts, watched until every store holds them."""
    summary, screen = stage.summary, stage.screen
    summary.texts = len(stage.bulk)
    screen.step(f"{len(stage.bulk):,} texts by INSERT: the docstrings of Python's standard library")
    started = time.perf_counter()
    async with stage.watching():
        await stage.writer.bulk(stage.bulk)
        committed = time.perf_counter() - started
        await stage.until_equal()
        summary.bulk_seconds = round(time.perf_counter() - started, 2)
    later = max(0.0, summary.bulk_seconds - committed)
    screen.say(f"committed in {committed:.1f} s, in Redis and searchable [bold]{later:.1f} s[/] later")


async def find(stage: Stage) -> None:
    """(2) A sentence just committed, found by a question in other words."""
    summary, screen = stage.summary, stage.screen
    screen.step("A sentence, committed and searched for")
    screen.quote(f"INSERT  {SENTENCE.content}")
    screen.quote(f"search  {QUESTION}")
    await stage.timed_search()  # the connection is open, as any client's would be
    change = await stage.writer.insert(SENTENCE)
    committed = time.perf_counter()
    while (await stage.observer.search(QUESTION, 1))[0]["key"] != {"id": change.id}:
        if time.perf_counter() - committed > PATIENCE_SECONDS:
            raise StoreError("the sentence is not found", hint="see the log of the FAISS consumer")
    summary.found_after_ms = round(1000 * (time.perf_counter() - committed), 1)
    rows = (await stage.observer.look()).rows["faiss"]
    screen.say(f"[green]found[/], first of {rows:,}, [bold]{summary.found_after_ms:.0f} ms[/] after its commit")
    times = summary.search_ms = Times.of([await stage.timed_search() for _ in range(SEARCHES)])
    screen.say(f"a search takes {times.p50:.1f} ms at p50, {times.p99:.1f} ms at p99")


async def trickle(stage: Stage) -> None:
    """(3) Inserts, updates and deletes one by one, each waited for in both stores."""
    stage.screen.step("A trickle of inserts, updates and deletes, each followed into both stores")
    taken: dict[str, list[float]] = {store: [] for store in STORES}
    deadline = time.perf_counter() + TRICKLE_SECONDS
    async with stage.watching():
        while time.perf_counter() < deadline:
            change = await stage.change()
            committed = time.perf_counter()
            for store, at in zip(STORES, await _seen(stage, change), strict=True):
                taken[store].append(at - committed)
    for store, what in zip(STORES, ("readable in Redis", "found in FAISS"), strict=True):
        times = stage.summary.applied_ms[store] = Times.of(taken[store])
        figures = f"[bold]{times.p50:.0f} ms[/] at p50, {times.p99:.0f} ms at p99"
        stage.screen.say(f"commit → {what:18} {figures}, of {times.samples} changes")


async def one_row(stage: Stage) -> None:
    """(4) The same record in three places, with its versions."""
    stage.screen.step("One record in three places, after an update")
    change = await stage.writer.update()
    await _seen(stage, change)
    row, fields = await stage.observer.row(change.id), await stage.observer.hash_of(change.id)
    hit = next(hit for hit in await stage.observer.search(change.content, 3) if hit["key"] == {"id": change.id})
    for place, vector, position, how in (
        ("PostgreSQL", row["version_vector"], "", f"SELECT … WHERE id = '{change.id}'"),
        ("Redis", json.loads(fields["_ver"]), fields["_pos"], f"HGETALL memory:{change.id}"),
        ("FAISS", hit["vector"], hit["position"], f"POST /search, score {hit['score']:.3f}"),
    ):
        version = escape(f"{json.dumps(vector):15}")
        at = f"LSN {format_lsn(decode_position(position.encode()).commit_lsn)}" if position else ""
        stage.screen.say(f"{place:11} version [bold]{version}[/] {at:14} [dim]{how}[/]")
    stage.screen.quote(row["content"])


async def _seen(stage: Stage, change: Change) -> tuple[float, float]:
    """When (perf_counter) Redis and the index held the change."""
    return await asyncio.gather(stage.observer.seen_in_redis(change), stage.observer.seen_in_index(change))
