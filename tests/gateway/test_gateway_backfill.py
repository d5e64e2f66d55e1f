"""Backfills and repairs over HTTP and by signals: what cannot be is refused at once, the rest is mended and told."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import redis

from tests.command_line import CommandLine
from tests.gateway.test_gateway_admin import KEY, asked, bearer, ended
from tests.gateway_rig import PIPELINE, TABLE, counted, execute, insert, running
from tests.waiting import until

WRONG: list[tuple[str, dict[str, Any], str]] = [
    *((f"/admin/{kind}", {"table": "public.nothing"}, "does not travel")
      for kind in ("backfill", "repair", "snapshot", "verify")),
    ("/admin/backfill", {"table": TABLE, "where": "nothing = 1"}, "nothing"),
    ("/admin/backfill", {"table": TABLE, "where": "true; DELETE FROM memories"}, "syntax error"),
    ("/admin/backfill", {"table": TABLE, "keys": ["no uuid"]}, "a key"),
    ("/admin/backfill", {"table": TABLE, "since": "some time"}, "duration"),
    ("/admin/backfill", {"table": TABLE, "since": "1d", "column": "content"}, "column"),
    ("/admin/backfill", {"table": TABLE, "keys": ["1"], "where": "true"}, "exclude"),
]  # fmt: skip
NOBODYS = "00000000-0000-4000-8000-000000000000"
OUTCOME = "SELECT outcome, reason, job_id FROM cdc.signals WHERE outcome IS NOT NULL ORDER BY id"


@pytest.fixture
def admin(data: dict[str, Any], command: CommandLine) -> CommandLine:
    """With a key."""
    data["gateway"] |= {"admin_key": KEY, "admin_per_minute": 1000}
    return CommandLine(command.folder, data)


async def test_what_there_is_not_begins_no_job(admin: CommandLine, data: dict[str, Any]) -> None:
    signals = [("backfill", '{"table": "public.memories", "where": "nothing"}'), ("snapshot", '{"table": "public.no"}')]
    async with running(admin, data) as client:
        for path, body, reason in WRONG:
            answer = await client.post(path, json=body, headers=bearer(KEY))
            assert answer.status_code == 422, (body, answer.text)
            assert reason in answer.json()["detail"], body
        for kind, arguments in signals:
            execute(data, "INSERT INTO cdc.signals (kind, arguments) VALUES (%s, %s)", [kind, arguments])
        await until(lambda: len(execute(data, OUTCOME)) == len(signals), "answers to the signals")
        assert (await client.get("/jobs", headers=bearer(KEY))).json() == []
    assert [(outcome, job) for outcome, _reason, job in execute(data, OUTCOME)] == [("refused", None)] * 2
    refused = execute(data, "SELECT action, actor FROM cdc.audit WHERE outcome = 'refused' AND origin <> 'cdc.signals'")
    assert [action for action, _actor in refused] == [path for path, _body, _reason in WRONG]


async def test_rows_are_sent_again_and_stores_mended(admin: CommandLine, data: dict[str, Any]) -> None:
    keys = insert(data, 40)
    async with running(admin, data, *PIPELINE) as client:
        await until(lambda: counted(client, 40), "40 rows everywhere")
        lose(data, keys[0])
        job = await ended(client, await asked(client, "/admin/backfill", {"table": TABLE, "keys": [keys[0]]}))
        assert (job["state"], job["done"], job["total"]) == ("succeeded", 1, 1), job
        assert job["after"]["result"] == {"table": TABLE, "rows": 1, "gone": 0}
        await until(lambda: counted(client, 40), "the row is back")
        lose(data, keys[1])
        with redis.Redis.from_url(data["redis"]["url"]) as working_memory:
            held = working_memory.hgetall(f"memory:{keys[2]}")
            working_memory.hset(f"memory:{NOBODYS}", mapping={**held, b"id": NOBODYS})
        job = await ended(client, await asked(client, "/admin/repair", {"store": "redis"}))
        assert job["state"] == "succeeded", job
        result = job["after"]["result"]
        assert (result["equal"], result["sent"]) == (True, 2), result
        assert [result["comparisons_before"][0]["counts"][kind] for kind in ("missing", "extra")] == [1, 1]
        await signalled(
            client, data, "backfill", '{"table": "public.memories", "since": "1d"}', {"rows": 40, "gone": 0}
        )
        await signalled(client, data, "repair", "{}", {"equal": True, "sent": 0})


def lose(data: dict[str, Any], key: str) -> None:
    """From Redis alone."""
    with redis.Redis.from_url(data["redis"]["url"]) as working_memory:
        assert working_memory.delete(f"memory:{key}") == 1


async def signalled(
    client: httpx.AsyncClient, data: dict[str, Any], kind: str, arguments: str, expected: dict[str, Any]
) -> None:
    """A row of cdc.signals becomes a job, which ends so."""
    before = len(execute(data, OUTCOME))
    execute(data, "INSERT INTO cdc.signals (kind, arguments) VALUES (%s, %s)", [kind, arguments])
    await until(lambda: len(execute(data, OUTCOME)) > before, "the signal is taken")
    job = await ended(client, {"id": str(execute(data, OUTCOME)[-1][2])})
    assert job["state"] == "succeeded", job
    assert job["after"]["result"].items() >= expected.items()
