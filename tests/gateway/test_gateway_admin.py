"""Administration: only with the key, each call in the audit log, work as jobs with figures before and after."""

from __future__ import annotations

import signal
from typing import Any

import httpx
import pytest
import redis

from tests.command_line import CommandLine
from tests.gateway_rig import PIPELINE, TABLE, counted, execute, insert, running
from tests.waiting import until

KEY = "a key of more than sixteen characters"
AUDIT = "SELECT actor, action, outcome, reason, job_id IS NOT NULL FROM cdc.audit ORDER BY id"


@pytest.fixture
def admin(data: dict[str, Any], command: CommandLine) -> CommandLine:
    """With a key."""
    data["gateway"] |= {"admin_key": KEY, "admin_per_minute": 1000}
    return CommandLine(command.folder, data)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def ended(client: httpx.AsyncClient, job: dict[str, Any]) -> dict[str, Any]:
    """The job, once it has ended."""
    found = dict(job)

    async def over() -> bool:
        answer = await client.get(f"/jobs/{job['id']}", headers=bearer(KEY))
        assert answer.status_code == 200, answer.text
        found.update(answer.json())
        return found["ended_at"] is not None

    await until(over, "the job's end")
    return found


async def asked(client: httpx.AsyncClient, path: str, body: Any = None) -> dict[str, Any]:
    """The job of a call that is allowed."""
    answer = await client.post(path, json=body, headers=bearer(KEY))
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


async def test_without_a_key_nobody_may(command: CommandLine, data: dict[str, Any]) -> None:
    async with running(command, data) as client:
        answer = await client.post("/admin/verify", json={}, headers=bearer("anything"))
        assert answer.status_code == 403
        assert "ADMIN_KEY_FILE" in answer.json()["detail"]
        assert (await client.get("/jobs")).status_code == 403
    assert [line[:3] for line in execute(data, AUDIT)] == [
        ("nobody", "/admin/verify", "refused"), ("nobody", "/jobs", "refused"),
    ]  # fmt: skip


@pytest.mark.parametrize("headers", [{}, bearer("wrong"), bearer(KEY[:-1]), bearer(KEY + "x"), {"Authorization": KEY}])
async def test_another_key_opens_nothing(admin: CommandLine, data: dict[str, Any], headers: dict[str, str]) -> None:
    async with running(admin, data) as client:
        answer = await client.post("/admin/rebuild", json={"store": "redis"}, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert KEY not in answer.text
    [line] = execute(data, AUDIT)
    assert (line[:3], line[4]) == (("nobody", "/admin/rebuild", "refused"), False)
    assert KEY not in (admin.folder / "gateway.log").read_text()


async def test_too_many_calls(data: dict[str, Any], command: CommandLine) -> None:
    data["gateway"] |= {"admin_key": KEY, "admin_per_minute": 3}
    async with running(CommandLine(command.folder, data), data) as client:
        codes = [(await client.get("/jobs", headers=bearer("wrong"))).status_code for _ in range(4)]
        assert codes == [401, 401, 401, 429]
        refused = await client.get("/jobs", headers=bearer(KEY))  # guessing does not go on, nor does anything else
        assert refused.status_code == 429
        assert 0 < int(refused.headers["retry-after"]) <= 60


async def test_jobs_tell_what_they_did(admin: CommandLine, data: dict[str, Any]) -> None:
    [key, *_] = insert(data, 40)
    async with running(admin, data, *PIPELINE) as client:
        await until(lambda: counted(client, 40), "40 rows everywhere")
        with redis.Redis.from_url(data["redis"]["url"]) as working_memory:
            working_memory.delete(f"memory:{key}")

        async def lost() -> bool:
            job = await ended(client, await asked(client, "/admin/refresh-stats"))
            return bool(job["after"]["redis"] == {TABLE: 39})

        await until(lost, "the loss in the figures")
        found = await ended(client, await asked(client, "/admin/verify", {"store": "redis"}))
        assert (found["state"], found["after"]["result"]["equal"]) == ("succeeded", False)
        assert found["after"]["result"]["comparisons"][0]["missing"] == 1

        rebuilt = await ended(client, await asked(client, "/admin/rebuild", {"store": "redis"}))
        assert (rebuilt["state"], rebuilt["error"]) == ("succeeded", None)
        assert rebuilt["before"]["redis"] == {TABLE: 39}
        assert rebuilt["after"]["redis"] == {TABLE: 40}
        assert rebuilt["after"]["result"]["swapped"]
        assert rebuilt["done"] == rebuilt["total"] > 0

        sent = await ended(client, await asked(client, "/admin/snapshot", {"table": TABLE}))
        assert (sent["state"], sent["after"]["result"]) == ("succeeded", {"table": TABLE, "rows": 40})
        nothing = await client.post("/admin/snapshot", json={"table": "public.nothing"}, headers=bearer(KEY))
        assert nothing.status_code == 422
        assert "does not travel" in nothing.json()["detail"]
        listed = (await client.get("/jobs", headers=bearer(KEY))).json()
        assert [job["id"] for job in listed[:2]] == [sent["id"], rebuilt["id"]]
        for body in ({"store": "elastic"}, {"stores": "redis"}, {}):
            assert (await client.post("/admin/rebuild", json=body, headers=bearer(KEY))).status_code == 422
    allowed = [line for line in execute(data, AUDIT) if line[2] == "allowed"]
    assert [line[1] for line in allowed[-2:]] == ["/admin/rebuild", "/admin/snapshot"]
    assert all(line[0] == "admin key" and line[4] for line in allowed)


async def test_a_job_can_be_cancelled(admin: CommandLine, data: dict[str, Any]) -> None:
    """A snapshot waits for the reader, which stands still here."""
    insert(data, 10)
    with admin.running("reader") as reader:
        async with running(admin, data, ("consume", "redis"), ("consume", "faiss")) as client:
            await until(lambda: counted(client, 10), "10 rows everywhere")
            reader.send_signal(signal.SIGSTOP)
            try:
                job = await asked(client, "/admin/snapshot", {"table": TABLE})
                assert (await client.post(f"/jobs/{job['id']}/cancel")).status_code == 401
                answer = await client.post(f"/jobs/{job['id']}/cancel", headers=bearer(KEY))
                assert (answer.status_code, answer.json()["state"]) == (200, "running")
                assert (await ended(client, job))["state"] == "cancelled"
                assert (await client.post(f"/jobs/{job['id']}/cancel", headers=bearer(KEY))).status_code == 404
                left = await asked(client, "/admin/snapshot", {"table": TABLE})
            finally:
                reader.send_signal(signal.SIGCONT)
    [(state, error)] = execute(data, f"SELECT state, error FROM cdc.jobs WHERE id = '{left['id']}'")
    assert (state, error) in (("failed", "the gateway was stopped while it ran"), ("succeeded", None))


async def test_who_has_sql_asks_by_a_row(command: CommandLine, data: dict[str, Any]) -> None:
    """Without any key of the gateway's; what is asked wrongly is refused with a reason."""
    insert(data, 6)
    async with running(command, data, *PIPELINE) as client:
        await until(lambda: counted(client, 6), "6 rows everywhere")
        for kind, arguments in {"verify": "{}", "rebuild": '{"store": "disk"}', "pause": "{}"}.items():
            execute(data, "INSERT INTO cdc.signals (kind, arguments) VALUES (%s, %s)", [kind, arguments])
        answered = "SELECT count(*) FROM cdc.signals WHERE outcome IS NOT NULL"
        await until(lambda: execute(data, answered) == [(3,)], "an answer to each signal")
        asked = dict(execute(data, "SELECT kind, concat_ws(': ', outcome, reason) FROM cdc.signals"))
        assert asked["verify"] == "accepted"
        assert asked["rebuild"] == "refused: store: Input should be 'redis' or 'faiss'"
        assert asked["pause"] == "refused: component: Field required"
        job = "SELECT j.state, j.after->'result'->'equal' FROM cdc.jobs j JOIN cdc.signals s ON s.job_id = j.id"
        await until(lambda: execute(data, job) == [("succeeded", True)], "the verify's job")
    assert sorted(line[1:3] for line in execute(data, AUDIT)) == [
        ("signal pause", "refused"), ("signal rebuild", "refused"), ("signal verify", "allowed"),
    ]  # fmt: skip
