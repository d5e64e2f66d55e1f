"""The failures that this project replaces, rebuilt as they happened, on real servers with real processes.

1. A health page said 0 memories while the database held 1,095: its counter lived in the memory of a process that had
   been started anew. Here no counter is kept by anybody who answers: every number is asked of its store, and a store
   that cannot be asked has no number.
2. A local cache stayed empty for ever, because a server was late when it was filled.
3. Two services wrote the same key in two ways, and did not find each other's rows.

That a nightly job silently never fired is test_schedules.py's.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest

from cdc.config import parse
from cdc.embedded import Endpoints, Servers
from cdc.embedded.folder import Folder
from consumers.redis import RedisStore
from tests.acceptance.town import PATIENCE_SECONDS, PROCESSES, ROWS, Town
from tests.gateway_rig import TABLE, status
from tests.prometheus import Prometheus
from tests.waiting import until

PROGRAM = shutil.which("prometheus")
COUNTS = re.compile(r"^(cdc_store_rows|cdc_source_rows)\{([^}]*)\} ([0-9.e+]+)$", re.M)
STORES = {"memory": "redis", "index": "faiss"}
PORTS = {"reader": "reader_port", "memory": "redis_port", "index": "faiss_port", "gateway": "gateway_port"}


@pytest.fixture(scope="module")
def filled(own_servers: tuple[Servers, Endpoints], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """1,095 rows in PostgreSQL."""
    made = Town(*own_servers, tmp_path_factory.mktemp("failures"))
    try:
        made.fill()
        yield made
    finally:
        made.close()


@pytest.fixture
async def town(filled: Town) -> AsyncIterator[Town]:
    """Everything runs and is in step."""
    async with filled.asked() as made:
        await made.whole()
        yield made


# 1


async def test_a_health_page_that_said_0(town: Town) -> None:
    """Whoever answers or fills is started anew, and all together; Redis and PostgreSQL go and come back."""
    async with watched(town) as looks:
        for names in (["gateway"], ["memory", "index"], list(PROCESSES)):
            town.kill(*names)
            town.start(*names)
            await town.in_step()
        for server, place in (("redis", ("stores", "redis")), ("postgres", ("source",))):
            await town.down(server)
            town.kill("gateway", "memory")
            town.start("gateway", "memory")
            await town.answers()
            found = await status(town.gateway)
            shown = found[place[0]][place[1]] if len(place) > 1 else found[place[0]]
            assert (found["status"], shown["up"], shown["tables"]) == ("degraded", False, None), found
            assert shown["reason"]
            assert any(reason.startswith(f"{server} is down: ") for reason in found["reasons"]), found["reasons"]
            await town.up(server)
            await town.in_step()
    assert looks["stats"] > 5
    assert looks["metrics"] > 5


@asynccontextmanager
async def watched(town: Town) -> AsyncIterator[dict[str, int]]:
    """Looks at the page and at all metrics all the while, as a person and Prometheus would."""
    looks = {"stats": 0, "metrics": 0}
    stop = asyncio.Event()

    async def watch() -> None:
        async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
            while not stop.is_set():
                looks["stats"] += await honest_page(town)
                for name in PORTS:
                    looks["metrics"] += await honest_metrics(client, town, name)
                await asyncio.sleep(0.02)

    watching = asyncio.ensure_future(watch())
    try:
        yield looks
    finally:
        stop.set()
        await watching


async def honest_page(town: Town) -> bool:
    """Nothing that holds the rows says another number; whether the page answered."""
    try:
        found = await status(town.gateway)
    except httpx.TransportError:
        return False  # it is being started
    for name, place in {"postgres": found["source"], **found["stores"]}.items():
        if place["tables"] is None:
            assert (place["up"], found["status"]) == (False, "degraded"), (name, found)
            assert place["reason"]
            continue
        held = place["tables"].get(TABLE)  # absent when nobody can be asked which tables there are
        rest = 0 if held is None else held["records"] + (place.get("lag_records") or 0)
        # a killed index is read back, and says so, or how many records are still to come
        behind = name == "faiss" and (found["status"] == "degraded" or rest >= ROWS > held["records"] > 0)
        assert held or found["status"] == "degraded", (name, found)
        assert not held or held["records"] == ROWS or behind, (name, found)
    return True


async def honest_metrics(client: httpx.AsyncClient, town: Town, name: str) -> int:
    """How many counts of rows a process showed."""
    try:
        text = (await client.get(f"http://127.0.0.1:{town.data['metrics'][PORTS[name]]}/metrics")).text
    except httpx.TransportError:
        return 0
    shown = COUNTS.findall(text)
    for metric, labels, value in shown:
        assert float(value) > 0, (metric, labels, value)  # it may be some seconds old, of before all rows had come
    return len(shown)


async def test_a_store_that_was_emptied_says_so(town: Town) -> None:
    """As a consumer has it the moment it opened an empty Redis: counts are 0, which nobody takes for the truth."""
    town.kill("memory")
    town.redis.flushall()
    found = await status(town.gateway)
    assert found["stores"]["redis"]["tables"] is None
    store = RedisStore(parse(town.data))
    try:
        assert await store.open() == {}
    finally:
        await store.close()

    async def emptied() -> bool:
        found = await status(town.gateway)
        assert (found["status"], found["stores"]["redis"]["filled"]) == ("degraded", 0)
        return bool(found["stores"]["redis"]["tables"][TABLE]["records"] == 0)

    await until(emptied, "a count taken since")  # one is kept for ten times as long as it took
    found = await status(town.gateway)
    assert [reason for reason in found["reasons"] if reason.startswith("redis is being filled: it has 0%")]
    answer = (await town.gateway.get("/memories", params={"user_id": "user 1", "limit": 1000})).json()
    assert (answer["source"], len(answer["memories"])) == ("postgres", (ROWS + 1) // 2)
    answer = (await town.gateway.get(f"/memories/{town.keys[0]}")).json()
    assert answer["source"] == "postgres"
    town.start("memory")
    await town.in_step()
    assert (await status(town.gateway))["stores"]["redis"]["filled"] is None
    answer = (await town.gateway.get("/memories", params={"user_id": "user 1", "limit": 1000})).json()
    assert (answer["source"], len(answer["memories"])) == ("redis", (ROWS + 1) // 2)


# 2


@pytest.mark.skipif(PROGRAM is None, reason="there is no prometheus; `make setup` installs it")
async def test_a_cache_whose_server_was_late(town: Town, tmp_path: Path) -> None:
    """The machine is started anew, Redis lost what it held and comes last: an alert fires until it is filled. Then
    the same with PostgreSQL last."""
    with prometheus(town, tmp_path) as watcher:
        alert = ("CdcFreshnessMissed", "redis")
        for late in ("redis", "postgres"):
            await quiet(watcher)
            town.redis.flushall()
            town.kill(*PROCESSES)
            await town.down(late)
            town.start(*PROCESSES)
            await town.answers()
            await until(lambda: alert in firing(watcher), f"{alert} fires", PATIENCE_SECONDS)
            town.assert_alive()
            found = await status(town.gateway)
            assert found["status"] == "degraded"
            if late == "redis":
                assert found["stores"]["redis"]["tables"] is None
            else:  # the topics have all that is needed
                keys = [f"memory:{key}" for key in town.keys]
                await until(
                    lambda keys=keys: town.redis.exists(*keys) == ROWS, "all rows without PostgreSQL", PATIENCE_SECONDS
                )
            await town.up(late)
            await town.in_step()
            await until(lambda: alert not in firing(watcher), f"{alert} clears", PATIENCE_SECONDS)
            town.assert_alive()


@contextmanager
def prometheus(town: Town, path: Path) -> Iterator[Prometheus]:
    """It scrapes the town."""
    assert PROGRAM is not None
    jobs = {"cdc-reader": "reader", "cdc-redis": "memory", "cdc-faiss": "index", "cdc-gateway": "gateway"}
    targets = {job: f"127.0.0.1:{town.data['metrics'][PORTS[name]]}" for job, name in jobs.items()}
    folder = Folder(path / "prometheus")
    folder.lock()
    server = Prometheus(folder, PROGRAM, targets)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        folder.unlock()


async def quiet(watcher: Prometheus) -> None:
    """It has seen both stores fresh."""
    ages = "cdc:store_age_seconds"
    await until(
        lambda: {labels["store"] for labels, _ in watcher.query(ages)} == {"redis", "faiss"},
        "both scraped",
        PATIENCE_SECONDS,
    )
    await until(lambda: not firing(watcher), "no alert", PATIENCE_SECONDS)


def firing(watcher: Prometheus) -> set[tuple[str, str]]:
    """Which alert, and of what."""
    found = watcher.alerts("firing")
    return {
        (each["labels"]["alertname"], each["labels"].get("store") or each["labels"].get("job", "")) for each in found
    }


# 3


async def test_a_key_written_in_another_way(town: Town) -> None:
    """A UUID has many textual forms, and PostgreSQL takes each for the same."""
    key = uuid.UUID(town.keys[7])
    forms = [str(key), str(key).upper(), f"{{{key}}}", key.hex, key.hex.upper(), f"{{{key.hex}}}", _by_fours(key)]
    for form in forms:
        answer = await town.gateway.get(f"/memories/{form}")
        assert answer.status_code == 200, (form, answer.text)
        assert answer.json()["key"] == {"id": str(key)}
        found = (await town.gateway.get(f"/memories/{form}/versions")).json()
        assert found["key"] == {"id": str(key)}
        assert found["postgres"]["exists"]
        assert {store["state"] for store in found["stores"].values()} == {"in step"}, found
    shown = town.command.json("versions", f"{{{str(key).upper()}}}")
    assert shown["key"] == {"id": str(key)}
    for wrong in ("7", "a heron", f"urn:uuid:{key}", f"{key}0", json.dumps({"id": str(key)})):
        for path in ("", "/versions"):
            answer = await town.gateway.get(f"/memories/{wrong}{path}")
            assert answer.status_code == 422, (wrong, answer.text)
            assert " → " in answer.json()["detail"], answer.text
    absent = await town.gateway.get(f"/memories/{uuid.uuid4()}")
    assert (absent.status_code, absent.json()["detail"]) == (404, f"{TABLE} has no such record")
    assert " → " in town.command.refusal("versions", "7")


def _by_fours(key: uuid.UUID) -> str:
    """With a hyphen after every group of four digits."""
    return "-".join(key.hex[at : at + 4] for at in range(0, 32, 4))
