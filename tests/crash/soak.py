"""The soak: for so many minutes everything breaks at random, two things at a time; at quiet points everything is
compared. Processes that end are started again, as an init system would.

| fault | how |
|---|---|
| kill, hang | SIGKILL, or SIGSTOP for a while, of reader and consumers |
| Kafka, PostgreSQL | SIGKILL of the whole server, started again after a while |
| Redis | the same, without persistence; FLUSHALL |
| network | cut, reset, black hole, lost packets, half-open, 1 Mbit/s, late, to each of the three servers |
| standby | a second reader; the working one is killed |
| work | requested snapshots, rebuilds, columns that come and go |
"""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import redis
from rich.console import Console

from cdc.commands.snapshot import request
from cdc.embedded import Servers
from cdc.errors import CdcError
from tests.crash.invariants import catch_up_bound
from tests.crash.network import Network, proxied
from tests.crash.report import Report
from tests.crash.rig import COMMAND_SECONDS, Rig, ended, lay_out, rigged
from tests.crash.trial import begin
from tests.crash.workload import Journal, writing

ROUND_SECONDS = 45.0  # of faults between two quiet points
PAUSE_SECONDS = (0.2, 2.5)  # between two faults
FAULT_SECONDS = (0.5, 6.0)  # a fault lasts
LONGEST_SECONDS = 20.0  # the longest outage of a round: two faults after each other and the servers' starts
AT_ONCE = 2
MBIT = 125_000  # bytes a second of 1 Mbit/s
LATE_SECONDS = 0.2


@dataclass
class World:
    """What faults are done to."""

    rig: Rig
    network: Network
    servers: Servers
    chance: random.Random
    columns: itertools.count[int] = field(default_factory=itertools.count)

    def seconds(self) -> float:
        """How long a fault lasts."""
        return self.chance.uniform(*FAULT_SECONDS)

    async def kill(self, name: str) -> None:
        """The supervision starts it again."""
        self.rig.children[name].kill()

    async def hang(self, name: str) -> None:
        """SIGSTOP, later SIGCONT."""
        process = self.rig.children[name].process
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(self.seconds())
        process.send_signal(signal.SIGCONT)

    async def server(self, name: str) -> None:
        """Killed with all its processes, and started again."""
        server = self.network.broker["kafka"] if name == "kafka" else self.servers[name]
        self._redis_may_lose(name == "redis")
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(self.seconds() / 2)
        await asyncio.to_thread(server.start)

    async def flush(self, _name: str) -> None:
        """FLUSHALL."""
        self._redis_may_lose(True)
        with redis.Redis.from_url(self.rig.config.redis.url) as link:
            link.flushall()

    async def line(self, name: str) -> None:
        """One of the proxy's faults."""
        proxy = getattr(self.network, name)
        faults: list[Callable[[], None]] = [
            proxy.cut, proxy.reset, proxy.black_hole, proxy.drop, lambda: proxy.half_open("client"),
            lambda: proxy.half_open("server"), lambda: proxy.slow(MBIT), lambda: proxy.delay(LATE_SECONDS),
        ]  # fmt: skip
        self.chance.choice(faults)()
        await asyncio.sleep(self.seconds())
        proxy.heal()

    async def standby(self, _name: str) -> None:
        """Two readers on one slot."""
        other = self.rig.command("reader")
        try:
            await asyncio.sleep(self.seconds())
            self.rig.children["reader"].kill()
            await asyncio.sleep(self.seconds())
        finally:
            other.kill()

    async def snapshot(self, _name: str) -> None:
        """Of a table; refused while PostgreSQL is away."""
        try:
            await request(self.rig.config, "public.memories", lambda _line: None, wait=False)
        except CdcError:
            return

    async def rebuild(self, name: str) -> None:
        """It may fail, with servers away; the live store goes on then."""
        self._redis_may_lose(name == "redis")
        await ended(self.rig.command("rebuild", name, "--json"), COMMAND_SECONDS)

    async def column(self, _name: str) -> None:
        """One comes, or the one before goes."""
        number = next(self.columns)
        change = f"ADD more_{number} int DEFAULT {number}" if number % 2 == 0 else f"DROP more_{number - 1}"
        while True:
            try:
                await asyncio.to_thread(self._alter, change)
            except psycopg.OperationalError:
                await asyncio.sleep(0.2)  # PostgreSQL starts
            else:
                return

    def _alter(self, change: str) -> None:
        with psycopg.connect(self.rig.config.postgres.dsn, autocommit=True) as connection:
            connection.execute(f"ALTER TABLE memories {change}")

    def _redis_may_lose(self, really: bool) -> None:
        if really:
            self.rig.watch.rows_paused = True


class Fault:
    """`target` is what no other fault touches at the same time."""

    def __init__(self, label: str, target: str, work: Callable[[str], Awaitable[None]], name: str = "") -> None:
        self.label, self.target, self._work, self._name = label, target, work, name

    async def happen(self) -> None:
        """From its beginning to its end."""
        await self._work(self._name)


def faults(world: World) -> list[Fault]:
    """All of them, each as likely as the others."""
    found = []
    for name in ("reader", "redis", "faiss"):
        found += [Fault(f"kill {name}", name, world.kill, name), Fault(f"hang {name}", name, world.hang, name)]
    for name in ("postgres", "kafka", "redis"):
        found.append(Fault(f"kill -9 of {name}, restart", f"server {name}", world.server, name))
        found.append(Fault(f"network to {name}", f"line {name}", world.line, name))
    for name in ("redis", "faiss"):
        found.append(Fault(f"rebuild {name}", f"rebuild {name}", world.rebuild, name))
    return [
        *found,
        Fault("FLUSHALL", "server redis", world.flush),
        Fault("standby takes over", "reader", world.standby),
        Fault("requested snapshot", "snapshot", world.snapshot),
        Fault("column added or dropped", "column", world.column),
    ]


async def soak(folder: Path, minutes: float, seed: int, console: Console) -> Report:
    """Rounds until the time is over or one fails."""
    settings = {"redis": {"appendonly": "no"}}
    servers = Servers(folder / "servers", only=("postgres", "redis"), settings=settings, report=console.print)
    report, begun = Report(seed), time.monotonic()
    try:
        with proxied(servers.start(), folder) as network:
            dsn = network.direct.postgres_dsn  # the server is ours alone; a connection that keeps a database would die
            lay_out(dsn)
            async with rigged(network.direct, dsn, folder, Journal(), network) as rig:
                try:
                    await begin(rig, seed)
                    rig.restarts = Counter()
                    world = World(rig, network, servers, random.Random(seed))
                    begun = time.monotonic()  # what starting took does not count
                    while time.monotonic() < begun + 60 * minutes:
                        await _round(world, report)
                        left = begun + 60 * minutes - time.monotonic()
                        console.print(f"quiet point {report.trials}: all equal, {max(0.0, left) / 60:.1f} min left")
                except Exception:  # noqa: BLE001 - whatever it is, the run ends with it
                    report.failure = f"{traceback.format_exc()}\nrepeat: --soak {minutes:g} --seed {seed}"
                report.seconds = time.monotonic() - begun
                report.peaks = rig.peaks
                restarts = {f"restarts of {name}": count for name, count in (rig.restarts or {}).items()}
                report.counted = {**rig.counted(), **restarts}
    finally:
        servers.erase()
    return report


async def _round(world: World, report: Report) -> None:
    """Faults, then quiet: all healed, caught up, compared."""
    rig, happened = world.rig, Counter[str]()
    with writing(rig.config.postgres.dsn, f"r{report.trials}", world.chance, rig.journal):
        await rig.guarded(_break(world, happened))
    healed = time.monotonic()
    await rig.guarded(rig.caught_up(catch_up_bound(LONGEST_SECONDS)))
    seconds = time.monotonic() - healed
    rig.watch.rows_paused = False
    await rig.guarded(rig.check())
    report.trials += 1
    for label, count in happened.items():
        row = report.rows[label]
        row.trials += count
        row.hits += count
        row.catch_ups.append(seconds)


async def _break(world: World, happened: Counter[str]) -> None:
    """Faults for a round; returns once the last one is over."""
    running: dict[asyncio.Task[None], Fault] = {}
    end = time.monotonic() + ROUND_SECONDS
    while time.monotonic() < end:
        busy = {fault.target for task, fault in running.items() if not task.done()}
        if len(busy) < AT_ONCE:
            fault = world.chance.choice([fault for fault in faults(world) if fault.target not in busy])
            running[asyncio.ensure_future(fault.happen())] = fault
            happened[fault.label] += 1
        await asyncio.sleep(world.chance.uniform(*PAUSE_SECONDS))
    await asyncio.gather(*running)
