"""Filtered searches through all processes: what PostgreSQL's WHERE says of the same conditions is what is found."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.command_line import CommandLine
from tests.gateway_rig import PIPELINE, counted, execute, running
from tests.waiting import until

ROWS = 240
FILTERS = ["user_id", "kind", "importance", "created_at", "id", "content"]
IDEA: tuple[dict[str, Any], str] = ({"kind": "idea"}, "kind = 'idea'")
QUESTIONS: list[tuple[dict[str, Any], str]] = [
    ({"user_id": "user 1"}, "user_id = 'user 1'"),
    ({"user_id": "user 1", "kind": {"in": ["note", "fact"]}}, "user_id = 'user 1' AND kind IN ('note', 'fact')"),
    ({"importance": None}, "importance IS NULL"),
    ({"importance": 0.1}, "importance = 0.1::real"),
    ({"importance": {"gte": 0.3, "lt": "0.7"}}, "importance >= 0.3::real AND importance < 0.7::real"),
    ({"created_at": {"gte": "2026-01-03", "lt": "2026-01-05T06:00:00+02:00"}},
     "created_at >= '2026-01-03' AND created_at < '2026-01-05T06:00:00+02'"),
    ({"created_at": "2026-01-02T00:00:00Z"}, "created_at = '2026-01-02'"),
    ({"content": {"gt": "memory 2", "lte": "memory 5"}},
     "content COLLATE \"C\" > 'memory 2' AND content COLLATE \"C\" <= 'memory 5'"),
    ({"kind": "nobody", "user_id": "user 1"}, "false"),
    ({"user_id": {"in": ["user 1", "user 2", "unknown"]}, "importance": {"gt": 0.5}},
     "user_id IN ('user 1', 'user 2') AND importance > 0.5"),
]  # fmt: skip


def fill(data: dict[str, Any]) -> None:
    execute(
        data,
        "INSERT INTO memories (user_id, kind, content, importance, created_at)"
        " SELECT 'user ' || mod(n, 7), (ARRAY['note', 'fact', 'plan'])[mod(n, 3) + 1], 'memory ' || n,"
        " nullif(mod(n, 11), 0) / 10.0, '2026-01-01'::timestamptz + n * interval '1 hour'"
        " FROM generate_series(1, %s) n",
        [ROWS],
    )


async def ask(client: httpx.AsyncClient, k: int = 1000, **question: Any) -> httpx.Response:
    return await client.post("/search", json={"text": "memory 7", "k": k, **question})


async def agree(client: httpx.AsyncClient, data: dict[str, Any], *questions: tuple[dict[str, Any], str]) -> None:
    """All rows that PostgreSQL finds are found, and the best are those of a search among all."""
    [(lsn,)] = execute(data, "SELECT pg_current_wal_lsn()::text")
    answer = await ask(client, min_lsn=lsn, wait_seconds=20)
    assert answer.status_code == 200, answer.text
    everything = {hit["key"]["id"]: hit["score"] for hit in answer.json()["hits"]}
    for where, condition in questions:
        await agrees(client, data, where, condition, everything)


async def agrees(client: httpx.AsyncClient, data: dict[str, Any], where: Any, condition: str, scores: Any) -> None:
    answer = await ask(client, filter=where)
    assert answer.status_code == 200, answer.text
    hits = answer.json()["hits"]
    wanted = {str(key) for (key,) in execute(data, f"SELECT id FROM memories WHERE {condition}")}
    assert {hit["key"]["id"] for hit in hits} == wanted, where
    assert len(hits) == len(wanted)
    best = sorted((scores[key] for key in wanted), reverse=True)
    assert [hit["score"] for hit in hits] == pytest.approx(best, abs=1e-6)


async def changes(client: httpx.AsyncClient, data: dict[str, Any]) -> None:
    """Updates that leave the text alone, deletes, a key that changes, and everything gone."""
    execute(data, "UPDATE memories SET kind = 'plan', importance = NULL WHERE user_id = 'user 1'")
    execute(data, "UPDATE memories SET user_id = 'user 1' WHERE user_id = 'user 2' AND kind = 'fact'")
    execute(data, "DELETE FROM memories WHERE user_id = 'user 3'")
    execute(data, "UPDATE memories SET id = gen_random_uuid() WHERE user_id = 'user 4'")
    [(key,)] = execute(data, "SELECT id::text FROM memories WHERE user_id = 'user 5' LIMIT 1")
    await agree(client, data, *QUESTIONS, ({"id": key.upper()}, f"id = '{key}'"))
    few = await ask(client, k=3, filter={"kind": "plan"})
    assert len(few.json()["hits"]) == 3


@pytest.mark.parametrize("flat_limit", [100_000, 100], ids=["flat", "ivf"])
async def test_a_filter_is_a_where(command: CommandLine, data: dict[str, Any], flat_limit: int) -> None:
    data["faiss"] |= {"filters": FILTERS, "flat_limit": flat_limit, "snapshot_seconds": 0.2}
    command = CommandLine(command.folder, data)
    fill(data)
    kind = "flat" if flat_limit > ROWS else "ivf"
    async with running(command, data, *PIPELINE[:2]) as client:
        with command.running("consume", "faiss"):
            await until(lambda: counted(client, ROWS), f"{ROWS} rows everywhere")
            await until(lambda: is_kind(client, kind), f"the index is {kind}")
            await changes(client, data)
            await refusals(client)
            await by_command(command, data)
            snapshots = held(command)
            execute(data, "UPDATE memories SET kind = 'idea' WHERE user_id = 'user 6'")
            await agree(client, data, IDEA)
            await until(lambda: held(command) > snapshots, "a snapshot")
        with command.running("consume", "faiss"):
            await until(lambda: answers(client), "the index answers again")
            assert "loaded a snapshot" in (command.folder / "consume-faiss.log").read_text()
            await agree(client, data, IDEA)
            assert command.run("rebuild", "faiss").returncode == 0
            await agree(client, data, *QUESTIONS, IDEA)
        data["faiss"]["filters"] = ["kind"]  # another set: the index fills itself anew
        with CommandLine(command.folder, data).running("consume", "faiss"):
            await until(lambda: answers(client), "the index answers again")
            await agree(client, data, IDEA)
            told = (command.folder / "consume-faiss.log").read_text()
            assert "a snapshot is not of this index" in told
            assert "filters is" in told
            assert (await ask(client, filter={"user_id": "user 1"})).status_code == 422


async def is_kind(client: httpx.AsyncClient, kind: str) -> bool:
    return bool((await client.get("/stats")).json()["stores"]["faiss"]["notes"]["kind"] == kind)


async def answers(client: httpx.AsyncClient) -> bool:
    return (await ask(client, k=1)).status_code == 200


def held(command: CommandLine) -> int:
    """The number of the newest snapshot."""
    found = Path(command.folder).glob("**/snapshot-*/manifest.json")
    return max((int(path.parent.name.removeprefix("snapshot-")) for path in found), default=0)


async def refusals(client: httpx.AsyncClient) -> None:
    unknown = await ask(client, filter={"metadata": "x"})
    assert unknown.status_code == 422
    assert all(name in unknown.json()["detail"] for name in FILTERS)
    wrong = [
        {"importance": "high"}, {"importance": True}, {"created_at": "yesterday"}, {"created_at": 5}, {"kind": 7},
        {"id": "no-uuid"}, {"importance": {"gte": "x"}},
    ]  # fmt: skip
    for where, reason in itertools.zip_longest(wrong, [], fillvalue="is not"):
        answer = await ask(client, filter=where)
        assert answer.status_code == 422, where
        assert reason in answer.json()["detail"]
        assert next(iter(where)) in answer.json()["detail"]


async def by_command(command: CommandLine, data: dict[str, Any]) -> None:
    asked = [
        "--filter",
        "user_id=user 1|user 5",
        "--filter",
        "created_at>=2026-01-04",
        "--filter",
        "created_at<2026-01-08",
    ]
    found = command.json("search", "memory 7", "-k", "1000", *asked)
    condition = "user_id IN ('user 1', 'user 5') AND created_at >= '2026-01-04' AND created_at < '2026-01-08'"
    wanted = {str(key) for (key,) in execute(data, f"SELECT id FROM memories WHERE {condition}")}
    assert {hit["key"]["id"] for hit in found["hits"]} == wanted
    assert wanted
    nulls = command.json("search", "memory 7", "-k", "1000", "--null", "importance", "--filter", "user_id=user 1")
    assert all("importance" not in hit["row"] and hit["row"]["user_id"] == "user 1" for hit in nulls["hits"])
    assert nulls["hits"]
    assert "kind" in command.refusal("search", "memory 7", "--filter", "metadata=x")
    assert "not column=value" in command.refusal("search", "memory 7", "--filter", "kind")
    shown = command.run("search", "memory 7", "-k", "2", "--filter", "kind=plan")
    assert shown.returncode == 0
    assert shown.stdout.count("memory ") == 2
