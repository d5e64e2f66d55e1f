"""`python -m benchmarks.roles ROLE CONFIG [ARGUMENT…]`: the programs under test, each a process of its own.

They run what the commands of `cdc` run. What they print is for the benchmark that started them: times are of the
machine's monotonic clock, which all processes share; counts come from the store.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.bare import drain
from benchmarks.source import DIMENSION
from cdc import log
from cdc.allocator import keep_freed
from cdc.config import Config, parse
from cdc.garbage import collect_rarely
from cdc.reader import Reader
from consumers.faiss.arrays import Vectors
from consumers.faiss.ivf import train
from consumers.faiss.metric import prepare
from consumers.faiss.store import FaissStore
from consumers.rebuild import Progress, rebuild
from consumers.redis.store import RedisStore
from consumers.runtime import Runtime

COUNT_SECONDS = 0.005  # between two looks at a store's count
SEARCH_SECONDS = 0.01  # between two searches: the resolution of `searchable`
FOUND = 0.999  # cosine similarity of a vector with itself, after rounding; random ones are near 0
SEARCHES, SEARCHED_HITS = 10, 10  # a second by a steady client: a fifth of a core at 100,000 vectors; and how many hits
AT_ONCE = 4  # rows searched for at once; with more, looking would be the load


async def read(config: Config) -> None:
    """PostgreSQL → Kafka until SIGTERM."""
    collect_rarely()
    reader = Reader(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, reader.stop)
    await reader.run()


async def consume_redis(config: Config) -> None:
    """Kafka → Redis until SIGTERM."""
    await Runtime(config, RedisStore(config), exclusive=False).serve()


def indexing(config: Config, store: FaissStore) -> Runtime:
    """The consumer of the index, as `cdc consume faiss` makes it."""
    return Runtime(
        config, store, exclusive=True, counts=store, tables=(config.faiss.table,), poll_records=config.faiss.batch
    )


async def consume_faiss(config: Config, *files: str) -> None:
    """Kafka → FAISS until SIGTERM; says how many vectors there are, or when those of the files were found."""
    store = FaissStore(config)
    runtime = indexing(config, store)
    serving = asyncio.create_task(runtime.serve())
    while not runtime.partitions.placed and not serving.done():
        await asyncio.sleep(COUNT_SECONDS)
    tell({"ready": time.monotonic()})
    if files:
        vectors = np.load(files[0])
        watching = asyncio.create_task(found(store, vectors))
    else:
        watching = asyncio.create_task(counted(store, *config.faiss.table.split(".")))
    await serving
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def counted(store: FaissStore, schema: str, table: str) -> None:
    """Says each new count."""
    before = 0
    while True:
        count = await store.count(schema, table)
        if count != before:
            before = count
            tell({"seconds": time.monotonic(), "rows": count})
        await asyncio.sleep(COUNT_SECONDS)


async def found(store: FaissStore, vectors: Vectors) -> None:
    """Searches for each vector until it itself is the best hit; says its place and the time."""
    pending = list(range(len(vectors)))
    while pending:
        window = pending[:AT_ONCE]
        hits = await store.search(vectors[window], 1)
        for place, best in zip(window, hits, strict=True):
            if best and best[0].score > FOUND:
                pending.remove(place)
                tell({"place": place, "seconds": time.monotonic()})
        await asyncio.sleep(SEARCH_SECONDS)


async def searched(config: Config, file: str, rows: str) -> None:
    """Kafka → FAISS until SIGTERM; once it has so many vectors it is searched at a fixed rate, and each search told."""
    store = FaissStore(config)
    serving = asyncio.create_task(indexing(config, store).serve())
    while store.content is None or await store.count(*config.faiss.table.split(".")) < int(rows):
        await asyncio.wait([serving], timeout=COUNT_SECONDS)
        if serving.done():
            return await serving
    tell({"ready": time.monotonic()})
    searching = asyncio.create_task(search_steadily(store, np.load(file)))
    await asyncio.wait([serving, searching], return_when=asyncio.FIRST_COMPLETED)
    if searching.done():
        await searching
    searching.cancel()
    await asyncio.gather(searching, return_exceptions=True)
    await serving


async def search_steadily(store: FaissStore, vectors: Vectors) -> None:
    """One search after the other at its time, however long those before take."""

    async def search(due: float, vector: Vectors) -> None:
        await store.search(vector[None], SEARCHED_HITS)
        tell({"due": due, "seconds": time.monotonic() - due, "applied": sum(store.loaded().offsets.values())})

    started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in count():
            due = started + number / SEARCHES
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(search(due, vectors[number % len(vectors)]))


async def replay(config: Config) -> None:
    """A rebuild of the index."""
    phases: dict[str, float] = {}

    def note(progress: Progress) -> None:
        phases.setdefault(progress.phase, time.monotonic())

    started = time.monotonic()
    report = await rebuild(config, FaissStore(config), tables=(config.faiss.table,), on_progress=note)
    tell(
        {"seconds": time.monotonic() - started, "records": report.records, "phases": phases, "ended": time.monotonic()}
    )


async def train_bare(config: Config, rows: str, seed: str) -> None:
    """The bound of a rebuild that ends in a partitioned index: vectors in memory, trained and filled in."""
    vectors = np.random.default_rng(int(seed)).uniform(-1, 1, (int(rows), DIMENSION)).astype(np.float32)
    ready, _, _ = prepare(vectors, config.faiss.metric)
    started = time.monotonic()
    train(np.arange(len(ready)), ready, config.faiss.metric)
    tell({"seconds": time.monotonic() - started})


async def fetch(config: Config, column: str, rows: str) -> None:
    """The bound of every consumer: fetch and decode, nothing else."""
    tell(await drain(config, column, int(rows)))


def tell(message: dict[str, Any]) -> None:
    """One line for the parent."""
    print(json.dumps(message), flush=True)


ROLES: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "reader": read, "redis": consume_redis, "faiss": consume_faiss, "searched": searched, "rebuild": replay,
    "bare": fetch, "trained": train_bare,
}  # fmt: skip


def main(name: str, path: str, *arguments: str) -> None:
    """Runs a role."""
    log.configure(f"benchmark-{name}")
    config = parse(json.loads(Path(path).read_text()))
    if name == "reader":
        keep_freed()  # as `cdc reader` does
    uvloop.run(ROLES[name](config, *arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
