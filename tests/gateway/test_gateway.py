"""The gateway on real servers: true counts beside each other, freshness, search, records, and what is down is down."""

from __future__ import annotations

import asyncio
import secrets
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import redis

from cdc.embedded import Endpoints, Server
from tests.command_line import CommandLine, free_ports
from tests.gateway_rig import PIPELINE, TABLE, counted, degraded, execute, insert, running, status
from tests.pipeline import MEMORIES, settings
from tests.waiting import until

ROWS = 1095  # as many as the database held while a health page said 0


async def test_a_health_page_can_not_say_0(command: CommandLine, data: dict[str, Any]) -> None:
    """1,095 rows in the database, and stores that were never filled: nothing says 0, nothing says that all is well."""
    insert(data, ROWS)
    async with running(command, data) as client:
        found = await status(client)
        assert found["source"]["tables"][TABLE]["records"] == ROWS
        assert found["status"] == "degraded"
        assert {name: (store["up"], store["tables"]) for name, store in found["stores"].items()} == {
            "redis": (False, None), "faiss": (False, None),
        }  # fmt: skip
        assert all(store["reason"] for store in found["stores"].values())
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        assert {name: answer["up"] for name, answer in ready.json()["dependencies"].items()} == {
            "postgres": True, "kafka": False, "redis": False, "faiss": False,
        }  # fmt: skip
        sync = (await client.get("/sync-status")).json()
        assert (sync["all_fresh"], sync["stale_count"]) == (False, 2)
        with ExitStack() as stack:  # and once something fills them, they say what they hold
            for arguments in PIPELINE:
                stack.enter_context(command.running(*arguments))
            await until(lambda: counted(client, ROWS), "true counts everywhere")
            assert (await client.get("/ready")).status_code == 200
            assert command.json("status")["up"]
    assert not command.json("status", code=1)["processes"]["gateway"]["up"]


async def test_counts_that_lag_does_not_explain(command: CommandLine, data: dict[str, Any]) -> None:
    keys = insert(data, 200)
    async with running(command, data, *PIPELINE) as client:
        await until(lambda: counted(client, 200), "200 rows everywhere")
        figures = (await status(client))["stores"]
        assert figures["faiss"]["tables"][TABLE] == {
            "records": 200, "with_embeddings": 200, "without_embeddings": 0,
        }  # fmt: skip
        for store in figures.values():
            assert store["memory_bytes"] > 0
            assert store["lag_records"] == 0
            assert store["age_seconds"] < data.get("freshness", {}).get("objective_seconds", 10)
            assert store["watermark"]
        with redis.Redis.from_url(data["redis"]["url"]) as client_of_redis:
            client_of_redis.delete(f"memory:{keys[0]}")  # a loss that nobody told us of
            await until(lambda: degraded(client), "degraded, once nothing written lately explains it")
            [reason] = (await status(client))["reasons"]
            assert "redis holds 199 records of public.memories, PostgreSQL 200; lag explains 0" in reason
        assert command.json("verify", "--repair", code=0)["equal"]
        await until(lambda: counted(client, 200), "200 rows again")


async def test_a_busy_system_raises_no_false_alarm(command: CommandLine, data: dict[str, Any]) -> None:
    """Counts are never of one moment; what was written between them explains the difference."""
    insert(data, 100)
    async with running(command, data, *PIPELINE) as client:
        await until(lambda: counted(client, 100), "100 rows everywhere")
        stop = threading.Event()
        writing = asyncio.create_task(asyncio.to_thread(churn, data, stop))
        try:
            for _ in range(12):
                found = await status(client)
                assert found["status"] == "ok", found["reasons"]
        finally:
            stop.set()
            rounds = await writing
        assert rounds > 12, "nothing was written between the looks"


def churn(data: dict[str, Any], stop: threading.Event) -> int:
    """Rows come and go until it is told to stop; how often."""
    rounds = 0
    some = "SELECT id FROM memories WHERE user_id = 'busy' LIMIT 3"
    with psycopg.connect(data["postgres"]["dsn"], autocommit=True) as connection:
        while not stop.is_set():
            rounds += 1
            connection.execute("INSERT INTO memories (user_id, content) SELECT 'busy', 'x' FROM generate_series(1, 5)")
            connection.execute(f"DELETE FROM memories WHERE id IN ({some})".encode())
    return rounds


async def test_what_is_down_is_down_with_its_reason(
    command: CommandLine, data: dict[str, Any], own_redis: tuple[str, Server]
) -> None:
    [key, *_] = insert(data, 20)
    async with running(command, data, ("reader",), ("consume", "redis")) as client:
        with command.running("consume", "faiss"):
            await until(lambda: counted(client, 20), "20 rows everywhere")
        found = await status(client)  # the index's process has ended
        assert (found["status"], found["stores"]["faiss"]["up"]) == ("degraded", False)
        assert found["stores"]["faiss"]["tables"] is None
        assert "cdc consume faiss" in found["stores"]["faiss"]["reason"]
        assert found["stores"]["redis"]["up"]
        search = await client.post("/search", json={"text": "memory 1"})
        assert search.status_code == 503
        assert "cdc consume faiss" in search.json()["detail"]
        own_redis[1].stop()
        try:
            found = (await status(client))["stores"]["redis"]
            assert (found["up"], found["tables"]) == (False, None)
            assert "cannot be reached" in found["reason"]
            assert (await client.get(f"/memories/{key}")).json()["source"] == "postgres"
            assert (await client.get("/memories", params={"user_id": "user 1"})).json()["source"] == "postgres"
        finally:
            own_redis[1].start()
        assert (await client.get("/ready")).json()["dependencies"]["redis"]["up"]


async def test_freshness_of_each_table_in_each_store(command: CommandLine, data: dict[str, Any]) -> None:
    data["freshness"] = {"objective_seconds": 1.5}
    command = CommandLine(command.folder, data)
    insert(data, 5)
    async with running(command, data, ("consume", "redis"), ("consume", "faiss")) as client:
        with command.running("reader"):

            async def fresh() -> bool:
                found = (await client.get("/sync-status")).json()
                return bool(found["all_fresh"] and {s["store"] for s in found["syncs"]} == {"redis", "faiss"})

            await until(fresh, "all fresh")

        async def stale() -> bool:
            found = (await client.get("/sync-status")).json()
            assert found["objective_seconds"] == 1.5
            return bool(found["stale_count"] == 2 and all(sync["age_seconds"] > 1.5 for sync in found["syncs"]))

        await until(stale, "stale without a reader")
        found = await status(client)
        assert found["status"] == "degraded"
        assert "behind, the objective is 1.5 s" in found["reasons"][0]


async def test_one_reads_ones_own_writes(command: CommandLine, data: dict[str, Any]) -> None:
    insert(data, 3)
    async with running(command, data, *PIPELINE) as client:
        await until(lambda: counted(client, 3), "3 rows everywhere")
        for number in range(10):
            word = f"word{number}{secrets.token_hex(4)}"
            execute(data, "INSERT INTO memories (user_id, content) VALUES ('ann', %s)", [word])
            [(lsn,)] = execute(data, "SELECT pg_current_wal_insert_lsn()::text")
            answer = await client.post("/search", json={"text": word, "k": 1, "min_lsn": lsn, "wait_seconds": 20})
            assert answer.status_code == 200, answer.text
            [hit] = answer.json()["hits"]
            assert hit["row"] is None or hit["row"]["content"] == word
            assert hit["score"] > 0.99
        never = await client.post("/search", json={"text": "x", "min_lsn": "FFFFFFFF/0", "wait_seconds": 0.2})
        assert never.status_code == 412
        assert "has not applied" in never.json()["detail"]
        assert (await client.post("/search", json={"vector": [1.0, 2.0]})).status_code == 422


async def test_single_records_and_lists(command: CommandLine, data: dict[str, Any]) -> None:
    keys = insert(data, 30)
    async with running(command, data, *PIPELINE) as client:
        await until(lambda: counted(client, 30), "30 rows everywhere")
        cached = (await client.get(f"/memories/{keys[4]}")).json()
        assert (cached["source"], cached["key"], cached["row"]["content"]) == ("redis", {"id": keys[4]}, "memory 5")
        with redis.Redis.from_url(data["redis"]["url"]) as working_memory:
            working_memory.delete(f"memory:{keys[4]}")
            direct = (await client.get(f"/memories/{keys[4]}")).json()
            assert (direct["source"], direct["row"], direct["vector"]) == ("postgres", cached["row"], cached["vector"])
            versions = (await client.get(f"/memories/{keys[4]}/versions")).json()
            assert versions["stores"]["redis"]["state"] == "behind: missing"
            assert versions["stores"]["faiss"]["state"] == "in step"
        execute(data, "UPDATE memories SET content = 'touched' WHERE id = %s", [keys[7]])

        async def touched() -> bool:
            found = (await client.get("/memories", params={"user_id": "user 0", "limit": 3})).json()["memories"]
            return bool(found[0]["row"]["content"] == "touched")

        await until(touched, "the touched row first")
        recent = (await client.get("/memories", params={"user_id": "user 0", "limit": 3})).json()
        assert len(recent["memories"]) == 3
        assert {memory["row"]["user_id"] for memory in recent["memories"]} == {"user 0"}
        newest = (await client.get("/memories/direct", params={"limit": 4})).json()
        assert newest["source"] == "postgres"
        assert len(newest["memories"]) == 4
        assert newest["memories"][0]["row"]["content"] == "touched"
        for path, code in {
            "/memories/00000000-0000-0000-0000-000000000000": 404, "/memories/no-uuid": 422, "/memories/%00": 422,
            "/memories/x?table=public.nothing": 422, "/memories?limit=3": 422, "/memories/direct?limit=0": 422,
        }.items():  # fmt: skip
            answer = await client.get(path)
            assert (path, answer.status_code) == (path, code)
            assert answer.json()["detail"]


async def test_the_control_schema_knows_which_store_has_which_row(command: CommandLine, data: dict[str, Any]) -> None:
    """Watermarks are recorded by the gateway; a store that lost its data is not said to have it."""
    insert(data, 8)
    synced = "SELECT count(*) FILTER (WHERE synced) FROM cdc.memory_sync_status"
    async with running(command, data, ("reader",), ("consume", "faiss")) as client:
        with command.running("consume", "redis"):
            await until(lambda: execute(data, synced) == [(8,)], "all rows synced by their watermarks")
            await until(lambda: counted(client, 8), "8 rows everywhere")
            [(stores,)] = execute(data, "SELECT array_agg(store ORDER BY store) FROM cdc.watermarks WHERE complete")
            assert stores == ["faiss", "redis"]
        with redis.Redis.from_url(data["redis"]["url"]) as working_memory:
            working_memory.flushall()
        await until(lambda: execute(data, synced) == [(0,)], "no row synced once Redis is empty")


async def test_records_with_and_without_embeddings(
    servers: Endpoints, dsn: str, own_redis: tuple[str, Server], tmp_path: Path
) -> None:
    """A table that brings its vectors along: all three places know how many have one."""
    data = settings(servers, dsn, tmp_path, **free_ports())
    data["redis"]["url"], _server = own_redis
    data["gateway"] |= {"stats_seconds": 0}
    with redis.Redis.from_url(data["redis"]["url"]) as working_memory:
        working_memory.flushall()
    execute(data, MEMORIES)
    execute(data, "INSERT INTO memories (id, embedding) SELECT n, CASE WHEN n > 4 THEN '{1,2,3}'::real[] END FROM"
            " generate_series(1, 11) n")  # fmt: skip
    async with running(CommandLine(tmp_path, data), data, *PIPELINE) as client:
        await until(lambda: counted(client, 11), "11 rows everywhere")
        found = await status(client)
        expected = {"records": 11, "with_embeddings": 7, "without_embeddings": 4}
        assert [place["tables"][TABLE] for place in (found["source"], *found["stores"].values())] == [expected] * 3
        one = (await client.get("/memories/5")).json()
        assert (one["source"], one["row"], one["key"]) == ("redis", {"id": "5"}, {"id": 5})
        assert (await client.get("/memories/99")).status_code == 404
        hits = (await client.post("/search", json={"vector": [1, 2, 3], "k": 3})).json()["hits"]
        assert [hit["row"] for hit in hits] == [{"id": str(hit["key"]["id"])} for hit in hits]
        assert (await client.post("/search", json={"text": "no embedder here"})).status_code == 422
