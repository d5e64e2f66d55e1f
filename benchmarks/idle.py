"""What an idle pipeline costs: CPU time and wake-ups of each process while nobody writes.

First the servers alone, then the same with the reader and the Redis consumer connected, for the same time: what the
servers do more is the pipeline's, too. Heartbeats go on; they are what keeps freshness known.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks import source, topic
from benchmarks.bench import Bench, wait_for_slot
from benchmarks.children import TICKS
from benchmarks.engine import Ours, prepare
from benchmarks.measure import Grid, Result
from cdc.embedded.identity import Identity

SECONDS, QUICK_SECONDS = 20.0, 3.0
SETTLED_SECONDS = 5.0  # after the start: imports and first requests are over
SERVERS = {"postgres": "PostgreSQL", "java": "Kafka", "redis-server": "Redis"}  # name of the process → what it is


@dataclass(frozen=True)
class Spent:
    """CPU seconds and wake-ups so far."""

    cpu: float
    wakes: int

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.cpu + other.cpu, self.wakes + other.wakes)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.cpu - other.cpu, self.wakes - other.wakes)


async def run(bench: Bench) -> list[Result]:
    """A table; no target is set."""
    seconds = QUICK_SECONDS if bench.quick else SECONDS
    with source.database(bench.endpoints.postgres_dsn) as dsn, source.connect(dsn) as connection:
        source.create_notes(connection)
        lane = await prepare(bench, connection, Ours(bench.endpoints.plugin), dsn, source.NOTES)
        alone = await watched(seconds)
        with bench.start("reader", dict(lane.settings)) as reader, bench.start("redis", dict(lane.settings)) as redis:
            wait_for_slot(connection, lane.slot, reader)
            await topic.exists(lane.config, lane.table, redis.look)
            await asyncio.sleep(SETTLED_SECONDS)  # a wait for nothing to happen: there is nothing else to wait for
            working = await watched(seconds)
    rows = [
        (name, *shares(alone.get(name, Spent(0, 0)), seconds), *shares(spent, seconds))
        for name, spent in working.items()
    ]
    return [
        Grid(
            "Idle: share of a core in percent, wake-ups a second",
            ("process", "CPU alone", "wake-ups alone", "CPU with pipeline", "wake-ups with pipeline"),
            tuple(rows),
        )
    ]


def shares(spent: Spent, seconds: float) -> tuple[float, int]:
    """Percent of a core, wake-ups a second."""
    return round(100 * spent.cpu / seconds, 2), round(spent.wakes / seconds)


async def watched(seconds: float) -> dict[str, Spent]:
    """What each kind of process below this one spent meanwhile."""
    before = everything()
    await asyncio.sleep(seconds)  # the measurement itself
    after = everything()
    return {name: spent - before.get(name, Spent(0, 0)) for name, spent in after.items()}


def everything() -> dict[str, Spent]:
    """By kind: servers, and roles by their name."""
    found: dict[str, Spent] = {}
    ours = Identity.of(os.getpid())
    for each in ours.descendants() if ours else ():
        try:
            name, spent = kind(each.pid), so_far(each.pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        found[name] = found.get(name, Spent(0, 0)) + spent
    return found


def kind(pid: int) -> str:
    """What a process is."""
    name = Path(f"/proc/{pid}/comm").read_text().strip()
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    if "benchmarks.roles" in words:
        return {"reader": "reader", "redis": "Redis consumer"}[words[words.index("benchmarks.roles") + 1]]
    return SERVERS.get(name, "others")


def so_far(pid: int) -> Spent:
    """CPU time (proc(5), stat fields 14 and 15), and how often its threads went to sleep of their own will."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    wakes = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        _, _, rest = (task / "status").read_text().partition("\nvoluntary_ctxt_switches:")
        wakes += int(rest.split()[0])
    return Spent((int(fields[11]) + int(fields[12])) / TICKS, wakes)
