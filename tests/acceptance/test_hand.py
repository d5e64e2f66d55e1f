"""What a newcomer does by hand: rows written with psql are seen with redis-cli and by a search, and go from both."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from cdc.embedded import programs
from tests.acceptance.conftest import Pipeline, cdc, processes_of
from tests.waiting import until

SENTENCE = "A heron waits in the reeds for the silver fish of the morning."
CHANGED = "The observatory's dome creaks when winter storms come over the ridge."


Psql = Callable[..., str]


@pytest.fixture(scope="module")
def psql(pipeline: Pipeline) -> Psql:
    """Runs one statement, with `:'name'` for the values; returns what psql prints."""
    program = str(programs.postgres("auto").bin / "psql")
    options = ["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "-v", "ON_ERROR_STOP=1"]

    def run(statement: str, **values: str) -> str:
        given = [word for name, value in values.items() for word in ("-v", f"{name}={value}")]
        command = [program, *options, *given, "-f", "-", pipeline.found["postgres_dsn"]]
        done = subprocess.run(command, input=statement, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    return run


def hgetall(pipeline: Pipeline, key: str) -> dict[str, str]:
    """What `redis-cli HGETALL memory:<key>` prints."""
    command = ["redis-cli", "-u", pipeline.found["redis_url"], "--json", "HGETALL", f"memory:{key}"]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def search(pipeline: Pipeline, text: str) -> list[dict[str, Any]]:
    """Hits of POST /search."""
    request = urllib.request.Request(
        f"{pipeline.found['gateway']}/search",
        json.dumps({"text": text, "k": 3}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return list(json.load(answer)["hits"])


def found(pipeline: Pipeline, key: str, text: str) -> dict[str, Any] | None:
    """The hit of that record among the best."""
    return next((hit for hit in search(pipeline, text) if hit["key"] == {"id": key}), None)


async def test_rows_written_by_hand_show_everywhere_and_vanish(pipeline: Pipeline, psql: Psql) -> None:
    key = psql("INSERT INTO memories (user_id, content) VALUES ('ada', :'text') RETURNING id", text=SENTENCE)
    await until(lambda: hgetall(pipeline, key).get("content") == SENTENCE, "the insert in Redis")
    await until(lambda: found(pipeline, key, SENTENCE) is not None, "the insert in a search")
    hit = found(pipeline, key, SENTENCE)
    assert hit is not None
    assert hit["row"]["user_id"] == "ada"
    assert list(hit["vector"].values()) == [1]

    psql("UPDATE memories SET content = :'text' WHERE id = :'key'", text=CHANGED, key=key)
    await until(lambda: hgetall(pipeline, key).get("content") == CHANGED, "the update in Redis")
    await until(
        lambda: list((found(pipeline, key, CHANGED) or {"vector": {}})["vector"].values()) == [2],
        "the update's version",
    )
    held = hgetall(pipeline, key)
    assert json.loads(held["_ver"]) == json.loads(
        psql("SELECT version_vector FROM memories WHERE id = :'key'", key=key)
    )
    assert search(pipeline, CHANGED)[0]["key"] == {"id": key}

    psql("DELETE FROM memories WHERE id = :'key'", key=key)
    await until(lambda: hgetall(pipeline, key) == {}, "the delete in Redis")
    await until(lambda: found(pipeline, key, CHANGED) is None, "the delete in a search")


async def test_status_counts_what_the_stores_hold(pipeline: Pipeline, psql: Psql) -> None:
    psql("INSERT INTO memories (user_id, content) SELECT 'ada', 'memory number ' || n FROM generate_series(1, 50) n")
    rows = int(psql("SELECT count(*) FROM memories"))

    def counted() -> bool:
        answer = pipeline.cdc("status", "--json")
        assert answer.returncode in (0, 1), answer.stderr
        stores = json.loads(answer.stdout)["stores"]
        return [stores[name]["rows"] for name in ("redis", "faiss")] == [{"public.memories": rows}] * 2

    await until(counted, f"both stores count {rows} rows")


async def test_a_planted_difference_is_found(pipeline: Pipeline, psql: Psql) -> None:
    keys = psql(
        "INSERT INTO memories (user_id, content)"
        " SELECT 'eve', 'planted ' || n FROM generate_series(1, 5) n RETURNING id"
    ).split()
    await until(lambda: all(hgetall(pipeline, key) for key in keys), "the rows in Redis")
    equal = pipeline.cdc("verify", "--json")
    assert equal.returncode == 0, equal.stdout + equal.stderr
    subprocess.run(["redis-cli", "-u", pipeline.found["redis_url"], "DEL", f"memory:{keys[0]}"], check=True)
    different = pipeline.cdc("verify", "--json")
    assert different.returncode == 1, different.stdout + different.stderr
    comparisons = {comparison["store"]: comparison for comparison in json.loads(different.stdout)["comparisons"]}
    assert comparisons["redis"]["missing"] == [json.dumps({"id": keys[0]}, separators=(",", ":"))]
    assert comparisons["faiss"]["equal"]


async def test_down_leaves_nothing_running(pipeline: Pipeline) -> None:
    assert processes_of(pipeline.data), "the pipeline should still run"
    answer = cdc("down", "--data", str(pipeline.data))
    assert answer.returncode == 0, answer.stderr
    assert pipeline.process.wait(30) == 0
    assert processes_of(pipeline.data) == []
