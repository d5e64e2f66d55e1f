"""From the start of `cdc reader`, warm, to its first change in Kafka: against imports and the servers' own answers.

Slot, topics and progress are there from a run before, and one change waits in the log. The bound has two parts: a bare
interpreter that imports the same modules and ends, and the servers' answers to the requests that no reader can do
without, asked once each by a program that is warm: a connection to PostgreSQL, a replication stream, Kafka's promise
that no older writer goes on, the progress record, and a transaction of one record until a committed reader has it.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing

import psycopg

from benchmarks import floor, source, topic
from benchmarks.bench import Bench, wait_for_slot
from benchmarks.children import Child
from benchmarks.engine import Lane, Ours, prepare
from benchmarks.measure import Check, Grid, Result
from benchmarks.reader import copy_slot, decoder_options
from benchmarks.source import Load
from cdc.kafka.progress import read_progress

TARGET = 2.0
ROUNDS = 5
IMPORTS = (
    "import psycopg, uvloop, cdc.cli, cdc.commands.reader, cdc.commands.snapshot_bar, cdc.commands.stopping,"
    " cdc.listening, cdc.log, cdc.metrics, cdc.reader"
)
LOOK_SECONDS = 0.002
OWN = ("start → stream", "stream → change in Kafka")  # ours; their sum is the whole


async def run(bench: Bench) -> list[Result]:
    """Medians of some rounds, ours and the parts of the bound in turn."""
    load = Load("one row", 1, transaction=1)
    rounds: list[dict[str, float]] = []
    with source.database(bench.endpoints.postgres_dsn) as dsn, source.connect(dsn) as connection:
        source.prepare_notes(connection, load, bench.seed)
        lane = await prepare(bench, connection, Ours(bench.endpoints.plugin), dsn, source.NOTES)
        await started(bench, connection, lane, 0)  # the first start makes what later ones find
        for number in range(1, 1 + bench.size(ROUNDS, 2)):
            ours = await started(bench, connection, lane, number)
            rounds.append(ours | {"imports": imported()} | await answers(connection, lane, dsn, number))
    parts = {part: statistics.median(each[part] for each in rounds) for part in rounds[0]}
    ours, bound = sum(parts[part] for part in OWN), sum(seconds for part, seconds in parts.items() if part not in OWN)
    rows = [(part, "ours" if part in OWN else "bound", round(1000 * seconds, 1)) for part, seconds in parts.items()]
    rows += [("all", "ours", round(1000 * ours, 1)), ("all", "bound", round(1000 * bound, 1))]
    bench.tell(f"start to first change: {1000 * ours:.0f} ms, imports and answers {1000 * bound:.0f} ms")
    return [
        Grid("Start to first change, warm", ("part", "of", "ms"), tuple(rows)),
        Check("start to first change over imports and the servers' answers", ours / bound, TARGET),
    ]


async def started(bench: Bench, connection: psycopg.Connection, lane: Lane, number: int) -> dict[str, float]:
    """Seconds of both parts of ours, for a change that was in the log before."""
    connection.execute("INSERT INTO public.notes VALUES (%s, 'user-0', 'first', 0, now())", [-number])
    source.log_end(connection)
    partitions = topic.partitions_of(lane.config, lane.table)
    async with topic.committed_reader(lane.config) as consumer:
        consumer.assign(partitions)
        await consumer.seek_to_end()
        await asyncio.gather(*[consumer.position(partition) for partition in partitions])
        spawned = time.monotonic()
        with bench.command(dict(lane.settings), "reader") as child:
            seen = asyncio.create_task(first_record(consumer, child))
            streaming = await asyncio.to_thread(wait_for_slot, connection, lane.slot, child)
            visible = await seen
    return dict(zip(OWN, (streaming - spawned, visible - streaming), strict=True))


async def first_record(consumer: object, child: Child) -> float:
    """When it was seen."""
    while not await consumer.getmany(timeout_ms=100):  # type: ignore[attr-defined]
        child.look()
    return time.monotonic()


def imported() -> float:
    """Seconds from the start of an interpreter that imports what the reader imports, to its end."""
    begun = time.monotonic()
    with Child([sys.executable, "-c", IMPORTS]) as child:
        while not child.ended():
            time.sleep(LOOK_SECONDS)
        return time.monotonic() - begun


async def answers(connection: psycopg.Connection, lane: Lane, dsn: str, number: int) -> dict[str, float]:
    """Seconds of each answer."""
    slot = copy_slot(connection, lane.slot, number)
    options = decoder_options(lane.config, connection)
    name = f"{lane.config.kafka.prefix}.first{number}"
    await topic.plain(lane.config.kafka, name, 1)

    async def connected() -> None:
        with psycopg.connect(dsn) as other:
            other.execute("SELECT 1")

    async def streamed() -> None:
        with closing(psycopg.connect(dsn, autocommit=True, replication="database")) as other:
            floor.started(other, slot, options)

    async def read() -> None:
        await read_progress(lane.config)

    async def transaction() -> None:
        await floor.transactions(lane.config, name, 1)  # its producer's start is the fence

    return {
        "PostgreSQL: connection": await timed(connected),
        "PostgreSQL: replication stream": await timed(streamed),
        "Kafka: progress read": await timed(read),
        "Kafka: writer fenced, one transaction seen": await timed(transaction),
    }


async def timed(work: Callable[[], Awaitable[None]]) -> float:
    """Seconds."""
    begun = time.monotonic()
    await work()
    return time.monotonic() - begun
