"""`cdc verify` on the whole path: every planted difference is found, by its kind, nothing else is, and repair mends it,
all while writes go on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from cdc.commands.outcome import Outcome, document, kinds_of
from cdc.commands.repair import mend
from cdc.commands.searching import parts
from cdc.commands.verify import STORES, compare_all
from cdc.config import Config
from cdc.embedded import Endpoints
from cdc.embedded.folder import free_port
from cdc.errors import ConnectError
from consumers.gateway.index import create_app
from consumers.gateway.server import GatewayServer
from tests.chance import seeded
from tests.pipeline import DIMENSION, MEMORIES, Running, config_of, pipeline, source
from tests.planting import IndexPlanter, Plan, RedisPlanter, keys, plan

ROWS = 3000
EACH = 10  # of ten sorts: 100 differences a store
TABLE = "public.memories"
FILL = (
    "INSERT INTO memories SELECT n, 'who ' || n %% 7, repeat(md5(n::text), 1 + n %% 90), n / 7.0, n * 1.10,"
    " jsonb_build_object('n', n), (SELECT array_agg((1 + sin(n * i)/2)::real) FROM generate_series(1, %s) i)"
    " FROM generate_series(1, %s) n"
)


@pytest.fixture
def rng() -> random.Random:
    return seeded("verify")


@pytest.fixture
def filled(dsn: str) -> str:
    """A database with the table, in which each row has a vector of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(MEMORIES)
        connection.execute(FILL, [DIMENSION, ROWS])
    return dsn


def made(servers: Endpoints, dsn: str, folder: Path, **changes: Mapping[str, Any]) -> Config:
    """With chunks that let a repair of all rows come soon."""
    faster = {"snapshot_chunk_rows": 500}
    settings = {"tables": {TABLE: {"vector": "embedding", "user": "who"}}, **changes}
    return config_of(servers, dsn, folder, postgres=faster, index={"port": free_port(set())}, **settings)


@asynccontextmanager
async def served(config: Config) -> AsyncIterator[Running]:
    """The whole path with the index's own service."""
    async with pipeline(config) as running:
        await running.caught_up()
        app = create_app(parts(config, running.index, running.consumers["faiss"]))
        async with GatewayServer(app, config.index.host, config.index.port):
            yield running


@asynccontextmanager
async def load(config: Config, ids: Sequence[int], rng: random.Random) -> AsyncIterator[None]:
    """Rows with these ids are inserted, changed and deleted all the time, one of them in every transaction."""
    ending = asyncio.Event()

    def change(connection: psycopg.Connection) -> None:
        hot, number = ids[0], rng.choice(ids[1:])
        vector = [rng.uniform(1, 2) for _ in range(DIMENSION)]
        with connection.transaction():
            connection.execute("UPDATE memories SET score = score + 1, embedding = %s WHERE id = %s", [vector, hot])
            if rng.random() < 0.3:
                connection.execute("DELETE FROM memories WHERE id = %s", [number])
            connection.execute(
                "INSERT INTO memories (id, content, embedding) VALUES (%s, %s, %s) ON CONFLICT (id)"
                " DO UPDATE SET content = excluded.content, embedding = excluded.embedding",
                [rng.choice(ids[1:]), f"changed {rng.random()}", vector],
            )

    async def work() -> int:
        changes = 0
        with source(config) as connection:
            while not ending.is_set():
                await asyncio.to_thread(change, connection)
                changes += 1
        return changes

    working = asyncio.ensure_future(work())
    try:
        yield
    finally:
        ending.set()
        changes = await working
    print(f"{changes} transactions beside")
    assert changes > 10


async def compared(config: Config) -> dict[str, Outcome]:
    """Every store's outcome."""
    outcomes = await compare_all(config, STORES, None, lambda line: None)
    return {outcome.store: outcome for outcome in outcomes}


def found_in(outcome: Outcome) -> dict[str, list[bytes]]:
    """Keys by kind, sorted; those still unsettled are no difference."""
    return {kind: sorted(found) for kind, found in kinds_of(outcome.found).items() if kind != "unsettled"}


def change_at_the_source(config: Config, plans: Sequence[Plan]) -> None:
    """The rows that the stores will hold in an older state."""
    with source(config) as connection:
        for chosen in plans:
            connection.execute(
                "UPDATE memories SET content = 'newer', embedding ="
                " (SELECT array_agg(-e) FROM unnest(embedding) e) WHERE id = ANY(%s)",
                [chosen.outdated],
            )


@pytest.mark.parametrize(
    "index", [{"metric": "l2"}, {"metric": "cosine", "flat_limit": 1000}], ids=["flat", "partitioned"]
)
async def test_every_planted_difference_is_found_and_mended(
    servers: Endpoints, filled: str, tmp_path: Path, rng: random.Random, index: dict[str, Any]
) -> None:
    """100 of 100 in each store, by kind, and none besides, while others change; once and twice mended, all is equal."""
    config = made(servers, filled, tmp_path, faiss=index)
    ids = list(range(1, ROWS + 1))
    rng.shuffle(ids)
    still, busy = ids[: ROWS // 2], ids[ROWS // 2 :]
    plans = {store: plan(rng, still, EACH) for store in STORES}
    assert {chosen.number for chosen in plans.values()} == {100}
    async with served(config) as running:
        await running.index.settle()
        assert running.index.loaded().index.kind == ("ivf" if "flat_limit" in index else "flat")  # type: ignore[union-attr]
        await planted(config, running, plans, rng)
        async with load(config, busy, rng):
            before = await compared(config)
            assert {store: found_in(outcome) for store, outcome in before.items()} == {
                store: chosen.kinds for store, chosen in plans.items()
            }
            for _ in range(2):
                assert await mend(config, list(before.values()), lambda line: None) > 0
                after = await compared(config)
                told = document(list(before.values()), list(after.values()))
                assert told["equal"], told
        assert [part["counts"]["missing"] for part in told["repaired"]] == [EACH, EACH]


async def planted(config: Config, running: Running, plans: Mapping[str, Plan], rng: random.Random) -> None:
    """Puts the plans into the stores, each row of `outdated` as it was before the source changed it."""
    with ExitStack() as stack:
        planters = [
            stack.enter_context(closing(RedisPlanter(config.redis.url, plans["redis"], rng))),
            stack.enter_context(closing(IndexPlanter(running.index, plans["faiss"], rng))),
        ]
        for planter in planters:
            planter.before()
        await asyncio.to_thread(change_at_the_source, config, list(plans.values()))
        await running.caught_up()
        for planter in planters:
            planter.plant()


async def test_load_alone_is_no_difference(servers: Endpoints, filled: str, tmp_path: Path, rng: random.Random) -> None:
    config = made(servers, filled, tmp_path)
    async with served(config) as running, load(config, range(1, ROWS + 500), rng):
        for _ in range(3):
            for outcome in (await compared(config)).values():
                assert found_in(outcome) == {"missing": [], "extra": [], "stale": [], "different": []}
                print(outcome.store, outcome.counts)
        assert running.source.task.done() is False


async def test_a_spoilt_vector_made_of_text_is_mended(
    servers: Endpoints, filled: str, tmp_path: Path, rng: random.Random
) -> None:
    """Text that did not change is not embedded again for a record that comes again, unless its vector is doubted."""
    config = made(servers, filled, tmp_path, tables={TABLE: {"text": "content"}}, faiss={"metric": "cosine"})
    chosen = plan(rng, range(1, ROWS + 1), EACH)
    chosen = Plan(spoilt=chosen.spoilt, swapped=chosen.swapped)
    async with served(config) as running:
        IndexPlanter(running.index, chosen, rng).plant()
        before = await compared(config)
        assert before["redis"].equal
        assert found_in(before["faiss"])["different"] == keys([*chosen.spoilt, *chosen.swapped])
        await mend(config, list(before.values()), lambda line: None)
        assert (await compared(config))["faiss"].equal


async def test_a_sample_finds_a_share(servers: Endpoints, filled: str, tmp_path: Path, rng: random.Random) -> None:
    """Half of the rows, chosen at random, show about half of what differs."""
    config = made(servers, filled, tmp_path)
    async with served(config) as running:
        chosen = plan(rng, range(1, ROWS + 1), 200)
        IndexPlanter(running.index, chosen, rng).plant()
        [outcome] = await compare_all(config, ["faiss"], TABLE, lambda line: None, sample=ROWS // 2)
    assert outcome.share < 1
    assert ROWS * 0.4 < outcome.found.rows < ROWS * 0.6
    for kind in ("missing", "extra"):
        found, planted = set(kinds_of(outcome.found)[kind]), set(chosen.kinds[kind])
        assert found < planted
        assert 50 < len(found) < 150  # seven standard deviations
    assert np.isfinite(outcome.seconds)


async def test_a_store_that_is_away_does_not_keep_the_others_from_being_compared(
    servers: Endpoints, filled: str, tmp_path: Path
) -> None:
    config = made(servers, filled, tmp_path)
    away = config.redis.model_copy(update={"url": f"redis://127.0.0.1:{free_port(set())}/0"})
    told: list[Outcome] = []
    async with served(config):
        with pytest.raises(ConnectError):
            await compare_all(
                config.model_copy(update={"redis": away}), STORES, None, lambda step: None, on_outcome=told.append
            )
    failed, compared = told
    assert (failed.store, failed.equal, failed.position) == ("redis", False, None)
    assert failed.error
    assert failed.run["error"] == failed.error
    assert (compared.store, compared.equal, compared.found.rows) == ("faiss", True, ROWS)
    assert compared.run["position"]
