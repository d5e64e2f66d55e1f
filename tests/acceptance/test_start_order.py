"""In whatever order servers, tables and processes come: each waits for what it needs and says so, none ends, nothing
but /health is promised meanwhile, and at the end all is there.

`CDC_START_ORDERS=n` tries so many orders, `all` every one of them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from cdc.embedded import Endpoints, Servers
from tests.acceptance.town import PATIENCE_SECONDS, PROCESSES, SERVERS, Town
from tests.chance import seeded
from tests.gateway_rig import TABLE, status
from tests.waiting import until

NEEDS = {"reader": ("postgres", "tables", "kafka"), "memory": ("kafka", "redis"), "index": ("kafka",)}
SAID = {"postgres": "PostgreSQL", "tables": "no table matches", "kafka": "Kafka at", "redis": "Redis at"}
PARTS = (*SERVERS, "tables", *PROCESSES)


def orders() -> list[Sequence[str]]:
    """Tables come behind their server, all else anywhere."""
    made = [o for o in itertools.permutations(PARTS) if o.index("postgres") < o.index("tables")]
    wanted = os.environ.get("CDC_START_ORDERS", "1")
    return made if wanted == "all" else seeded("orders").sample(made, int(wanted))


@pytest.mark.parametrize("order", orders(), ids=",".join)
async def test_any_order_ends_in_the_same(
    own_servers: tuple[Servers, Endpoints], tmp_path: Path, order: Sequence[str]
) -> None:
    town = Town(*own_servers, tmp_path)
    try:
        async with town.asked():
            await one_by_one(town, order)
    finally:
        town.close()


async def one_by_one(town: Town, order: Sequence[str]) -> None:
    """From nothing to everything."""
    for server in SERVERS:
        await town.down(server)
    up: list[str] = []
    for part in order:
        await come(town, part, up)
        up.append(part)
        if "gateway" in up:
            await town.answers()
            await assert_honest(town, up)
    await town.in_step()
    assert (await town.gateway.get("/ready")).status_code == 200
    town.assert_alive()


async def come(town: Town, part: str, up: Sequence[str]) -> None:
    """One more; returns when it answers, or has said what it waits for."""
    if part in SERVERS:
        await town.up(part)
    elif part == "tables":
        town.fill()
    else:
        town.start(part)
        lacked = [SAID[need] for need in NEEDS.get(part, ()) if need not in up]
        await until(lambda: settled(town, part, lacked), f"{part} says what it waits for: {lacked}", PATIENCE_SECONDS)


def settled(town: Town, part: str, lacked: Sequence[str]) -> bool:
    """A line with its remedy names something that is not there; or there is nothing to wait for."""
    town.assert_alive()
    said = [line["reason"] for line in town.log(part) if line["level"] == "warning" and "hint" in line]
    return any(what in reason for what in lacked for reason in said) if lacked else bool(town.log(part))


async def assert_honest(town: Town, up: Sequence[str]) -> None:
    """The gateway lives; while anything is missing it is not ready, says why, and that nothing is sure."""
    missing = {*PARTS} - set(up)
    ready, found = await town.gateway.get("/ready"), await status(town.gateway)
    reasons = {name: each["reason"] for name, each in ready.json()["dependencies"].items() if not each["up"]}
    assert reasons.keys() >= missing & set(SERVERS), (reasons, missing)
    assert all(" → " in reason for reason in reasons.values()), reasons
    assert ready.status_code == (503 if reasons else 200)
    for place in (found["source"], *found["stores"].values()):
        if ((place["tables"] or {}).get(TABLE) or {}).get("records") == 0:
            assert "tables" not in up or found["status"] == "degraded", found
    if missing:
        assert found["status"] == "degraded", found
        assert found["reasons"], found
