"""Pausing and emptying the cache as an operator does it: over HTTP, by a signal and by the command."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import redis

from tests.command_line import CommandLine
from tests.gateway.test_gateway_admin import KEY, asked, bearer, ended
from tests.gateway_rig import PIPELINE, TABLE, counted, execute, insert, running, status
from tests.waiting import until

SIGNAL = "INSERT INTO cdc.signals (kind, arguments) VALUES (%s, %s)"


@pytest.fixture
def admin(data: dict[str, Any], command: CommandLine) -> CommandLine:
    """With a key, and an objective that is soon missed."""
    data["gateway"] |= {"admin_key": KEY, "admin_per_minute": 1000}
    data["freshness"] = {"objective_seconds": 2.0}
    return CommandLine(command.folder, data)


async def stale(client: httpx.AsyncClient) -> set[str]:
    found = (await client.get("/sync-status")).json()
    return {sync["store"] for sync in found["syncs"] if sync["is_stale"]}


async def test_pausing_and_the_cache(admin: CommandLine, data: dict[str, Any]) -> None:
    """One after the other: the processes need longer to start than all of it takes."""
    insert(data, 20)
    async with running(admin, data, *PIPELINE) as client:
        await until(lambda: counted(client, 20), "20 rows everywhere")
        await _a_component_stands_still(admin, data, client)
        audit = "SELECT action, arguments FROM cdc.audit WHERE outcome = 'allowed' ORDER BY id"
        assert execute(data, audit) == [
            ("/admin/pause", {"component": "redis", "why": "an upgrade"}), ("signal resume", {"component": "redis"}),
        ]  # fmt: skip
        await _the_cache_is_emptied(admin, data, client)


async def _a_component_stands_still(admin: CommandLine, data: dict[str, Any], client: httpx.AsyncClient) -> None:
    job = await ended(client, await asked(client, "/admin/pause", {"component": "redis", "why": "an upgrade"}))
    assert (job["state"], job["after"]["result"]["taken"]) == ("succeeded", True)
    insert(data, 5)

    async def only_redis() -> bool:
        return await stale(client) == {"redis"}

    await until(only_redis, "Redis alone is stale")
    found = await status(client)
    assert found["status"] == "degraded"
    assert "redis is paused by admin key (an upgrade)" in found["reasons"]
    assert (found["paused"]["redis"]["by"], found["paused"]["redis"]["why"]) == ("admin key", "an upgrade")
    assert found["stores"]["redis"]["tables"][TABLE]["records"] == 20
    assert found["stores"]["redis"]["lag_records"] >= 5
    assert (await client.get("/sync-status")).json()["paused"] == found["paused"]
    told = admin.json("status", code=0)["paused"]
    assert (told.keys(), told["redis"]["why"]) == ({"redis"}, "an upgrade")
    assert "paused by admin key" in admin.run("status").stdout
    execute(data, SIGNAL, ["resume", '{"component": "redis"}'])
    await until(lambda: counted(client, 25), "25 rows everywhere")

    command = admin.json("pause", "reader", "--why", "by hand")
    assert (command["component"], command["taken"]) == ("reader", True)
    assert list((await status(client))["paused"]) == ["reader"]
    insert(data, 5)
    execute(data, SIGNAL, ["resume", '{"component": "writer"}'])
    answers = "SELECT reason FROM cdc.signals WHERE outcome = 'refused'"
    await until(lambda: bool(execute(data, answers)), "an answer to the signal")
    assert "component" in execute(data, answers)[0][0]
    assert admin.json("resume", "reader")["taken"]
    await until(lambda: counted(client, 30), "30 rows everywhere")
    assert (await client.post("/admin/pause", json={"component": "redis"})).status_code == 401
    for body in ({}, {"component": "disk"}, {"component": "redis", "why": "x" * 201}):
        assert (await client.post("/admin/pause", json=body, headers=bearer(KEY))).status_code == 422


async def _the_cache_is_emptied(admin: CommandLine, data: dict[str, Any], client: httpx.AsyncClient) -> None:
    with redis.Redis.from_url(data["redis"]["url"]) as working_memory:
        working_memory.set("somebody's", "value")
        asking = await client.request("DELETE", "/admin/cache", json={"table": TABLE}, headers=bearer(KEY))
        assert asking.status_code == 202, asking.text
        job = await ended(client, asking.json())
        assert (job["state"], job["error"], job["arguments"]) == ("succeeded", None, {"table": TABLE})
        assert job["after"]["result"] == {"tables": {TABLE: {"before": 30, "after": 30}}}
        assert job["before"]["redis"] == job["after"]["redis"] == {TABLE: 30}
        assert job["done"] == job["total"] > 0

        job = await ended(client, await asked(client, "/admin/pause", {"component": "redis"}))
        waiting = (await client.request("DELETE", "/admin/cache", headers=bearer(KEY))).json()

        async def degraded() -> bool:
            found = await status(client)
            redis, said = found["stores"]["redis"], [r for r in found["reasons"] if "paused" not in r]
            empty = redis["tables"] is not None and redis["tables"][TABLE]["records"] == 0
            return empty and redis["lag_records"] >= 20 and any(reason.startswith("redis") for reason in said)

        await until(degraded, "readers are told")
        cancelled = await client.post(f"/jobs/{waiting['id']}/cancel", headers=bearer(KEY))
        assert cancelled.status_code == 200
        assert (await ended(client, waiting))["state"] == "cancelled"
        insert(data, 5)
        await ended(client, await asked(client, "/admin/resume", {"component": "redis"}))
        await until(lambda: counted(client, 35), "it fills again, whoever asked has gone")
        assert admin.json("cache", "clear") == {"tables": {TABLE: {"before": 35, "after": 35}}}
        assert working_memory.get("somebody's") == b"value"
    assert (await client.request("DELETE", "/admin/cache")).status_code == 401
    nothing = await client.request("DELETE", "/admin/cache", json={"table": "public.nothing"}, headers=bearer(KEY))
    assert "nothing of public.nothing" in (await ended(client, nothing.json()))["error"]
