"""One trial: sessions write, a process dies at a chosen place, starts again, and everything is compared."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Sequence
from typing import NamedTuple

from cdc.commands.asking_for_rows import Wanted, backfill, planned
from cdc.commands.snapshot import request
from tests.crash.cases import ANYWHERE, Case
from tests.crash.invariants import Violation, catch_up_bound, caught_up_in_time, rebuilt_equal
from tests.crash.rig import SERVICES, Rig, ended
from tests.crash.workload import writing
from tests.pipeline import CommandChild

FIRST_START = "reader.slot-created"  # passed by a new world's reader only
HIT_SECONDS = 60.0  # for a failpoint to be reached; else it counts as missed
START_SECONDS = 120.0  # for a first start of all processes on a busy machine
REBUILD_EVERY = 10  # trials
AFTER_SECONDS = (0.05, 0.4)  # writing goes on that long after the restart


class Outcome(NamedTuple):
    """`hits` as the cases; seconds of the longest outage, and from the last restart to equality of all."""

    cases: Sequence[Case]
    hits: Sequence[bool]
    outage: float
    catch_up: float


class _Death(NamedTuple):
    hit: bool
    outage: float


async def begin(rig: Rig, seed: int) -> None:
    """The first rows, and all processes up: so that a single trial finds what it would find among others."""
    with writing(rig.config.postgres.dsn, "begin", random.Random(seed), rig.journal):
        await rig.guarded(asyncio.sleep(1))
    await rig.guarded(rig.caught_up(START_SECONDS))
    await rig.guarded(rig.check(gap=True))


async def run(rig: Rig, number: int, seed: int, cases: Sequence[Case]) -> Outcome:
    """Raises Violation, and what else went wrong."""
    chance = random.Random(f"{seed}:{number}")
    if any(case.point == FIRST_START for case in cases):
        await rig.renew(f"{FIRST_START}=kill")
    gap = any(case.kind == "resync" or case.point == FIRST_START for case in cases)
    with writing(rig.config.postgres.dsn, f"t{number}", chance, rig.journal):
        deaths = await rig.guarded(_all(rig, cases, chance))
        restarted = time.monotonic()
        await rig.guarded(asyncio.sleep(chance.uniform(*AFTER_SECONDS)))
    outage = max(death.outage for death in deaths)
    await rig.guarded(rig.caught_up(catch_up_bound(outage)))
    seconds = time.monotonic() - restarted
    caught_up_in_time(seconds, outage)
    rig.watch.rows_paused = False
    await rig.guarded(rig.check(gap=gap))
    if number % REBUILD_EVERY == 0:
        for store in ("redis", "faiss"):
            rebuilt_equal(await rig.guarded(rig.rebuild(store)), quiet=True)
    return Outcome(cases, [death.hit for death in deaths], outage, seconds)


async def _all(rig: Rig, cases: Sequence[Case], chance: random.Random) -> list[_Death]:
    kills = [_kill(rig, case, random.Random(chance.random())) for case in cases]
    return list(await asyncio.gather(*kills))


async def _kill(rig: Rig, case: Case, chance: random.Random) -> _Death:
    if case.victim in SERVICES:
        return await _service(rig, case, chance)
    return await (_resync if case.victim == "resync" else _rebuild)(rig, case)


async def _service(rig: Rig, case: Case, chance: random.Random) -> _Death:
    name = case.victim
    rig.may_end.add(name)
    if case.point == ANYWHERE:
        await asyncio.sleep(chance.uniform(0, 1))
        rig.children[name].kill()
        hit = True
    else:
        hit = await _armed(rig, case, chance)
    died = time.monotonic()
    if name != "reader":
        await rig.offsets_kept(name)
    rig.start(name)
    rig.may_end.discard(name)
    return _Death(hit, time.monotonic() - died)


async def _armed(rig: Rig, case: Case, chance: random.Random) -> bool:
    """Changes the service for one that will kill itself; whether it did."""
    name = case.victim
    if case.point == FIRST_START:
        return await _dead(rig.children[name], case)
    if name == "redis" or chance.random() < 0.5:  # a group misses a killed member for 10 s
        await rig.stop(name)
    else:
        rig.children[name].kill()
    if case.point.startswith("snapshot."):
        await asyncio.to_thread(_ask_for_rows, rig, chance.choice(("all", "part", "keys")))
    rig.start(name, f"{case.point}=kill@{chance.randint(1, case.most)}")
    return await _dead(rig.children[name], case)


def _ask_for_rows(rig: Rig, what: str) -> None:
    """The request waits in the slot for the next reader: a whole table, all its rows without a sweep, or keys, of which
    some have rows."""
    if what == "all":
        asyncio.run(request(rig.config, "public.memories", lambda _line: None, wait=False))
        return
    keys = [str(key) for key in range(1, 200)] if what == "keys" else []
    plan = planned(rig.config, Wanted("public.memories", keys))
    asyncio.run(backfill(rig.config, plan, lambda _rows, _total: None, wait=False))


async def _dead(child: CommandChild, case: Case) -> bool:
    """Raises Violation when it ended in another way."""
    in_time = await ended(child, HIT_SECONDS)
    text = child.log.read_text()
    hit = f"failpoint {case.point}: kill" in text
    if in_time and not (hit and child.process.returncode == -signal.SIGKILL):
        raise Violation(f"{case.label} ended by itself with {child.process.returncode}: {text[-1500:]}")
    return hit


async def _resync(rig: Rig, case: Case) -> _Death:
    """The reader is gone; a resync dies, another one succeeds; the reader begins the new epoch."""
    rig.watch.slot_paused = True
    rig.may_end.add("reader")
    rig.children["reader"].kill()
    died = time.monotonic()
    await rig.slot_free()
    hit = await _dead(rig.command("resync", failpoint=f"{case.point}=kill"), case)
    await rig.slot_free()
    await rig.succeed("resync")
    rig.start("reader")
    rig.may_end.discard("reader")
    outage = time.monotonic() - died
    rig.watch.slot_paused = False
    return _Death(hit, outage)


async def _rebuild(rig: Rig, case: Case) -> _Death:
    """It dies, another one succeeds, while the live store is written and read."""
    words = case.victim.split()
    rig.watch.rows_paused = True  # a swap shows rows as of the shadow, until the running consumer has caught up in it
    hit = await _dead(rig.command(*words, failpoint=f"{case.point}=kill"), case)
    rebuilt_equal(await rig.rebuild(words[1]), quiet=False)
    return _Death(hit, 0.0)
