"""The FAISS store at work: start, changes, searches meanwhile, snapshots, restarts, training."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdc import metrics
from cdc.errors import StoreError
from consumers.faiss import FaissStore, keeper
from consumers.store import Inspectable, Rebuildable, Store
from tests.vector_records import (
    DIMENSION,
    SEEN,
    TOPIC,
    batch,
    config,
    deletion,
    fill,
    held,
    key_of,
    normal,
    opened,
    position,
    record,
    vectors,
)


def test_it_fills_the_protocols(tmp_path: Path) -> None:
    store = FaissStore(config(tmp_path))
    protocols: tuple[Store, Inspectable, Rebuildable] = (store, store, store)
    assert protocols[0].name == "faiss"


async def test_a_restart_goes_on_exactly_where_the_snapshot_stands(tmp_path: Path) -> None:
    async with opened(config(tmp_path)) as store:
        assert await store.open() == {}
        data = await fill(store, 50)
        await store.apply(batch([deletion(3, 100, 50), record(4, 101, None, offset=51)]))
        await store.apply(batch([record(0, 1)], offset=9, table="other"))
        assert await store.flush() == {("t.public.other", 0): 9}  # other tables lose nothing
        durable = await store.flush(force=True)
        assert durable == {(TOPIC, 0): 52, ("t.public.other", 0): 9}
        await store.apply(batch([record(1, 200, data[5], offset=52)]))
        before = await held(store)
    async with opened(config(tmp_path)) as store:
        assert await store.open() == durable
        after = await held(store)
        assert after[key_of(1)] == position(2)  # the change after the snapshot comes again
        await store.apply(batch([record(1, 200, data[5], offset=52)]))
        assert await held(store) == before
        assert await store.count(*SEEN) == 48
        assert await store.count("public", "other") == 0
        assert await store.versions("public", "other", [b"x"]) == [None]
        versions = await store.versions(*SEEN, [key_of(3), key_of(4), b"?"])
        assert [v and (v.position, v.deleted) for v in versions] == [
            (position(100), True),
            (position(101), False),
            None,
        ]
        hits = await store.search(normal(data)[5:6], 2)
        assert sorted(hit.key for hit in hits[0]) == [key_of(1), key_of(5)]
        vector = await store.vector_of(key_of(5))
        assert vector == pytest.approx(normal(data)[5])


async def test_snapshots_come_by_number_and_by_time_and_old_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "SPACING", 0)
    async with opened(config(tmp_path, snapshot_records=10, keep_snapshots=2)) as store:
        for round_ in range(5):
            await fill(store, 10, lsn=1000 * round_ + 1, seed=round_)
            await store.flush()
            await store.settle()
        assert await store.flush() == {(TOPIC, 0): 10}
        assert sorted(p.name for p in (tmp_path / "gen-1").glob("snapshot-*")) == ["snapshot-4", "snapshot-5"]
        await store.flush(force=True)  # nothing changed, so nothing is written
        assert not (tmp_path / "gen-1" / "snapshot-6").exists()
    async with opened(config(tmp_path, snapshot_seconds=0.001)) as store:
        await fill(store, 1, lsn=10**6)
        await asyncio.sleep(0.01)
        await store.flush()
        await store.settle()
        assert (tmp_path / "gen-1" / "snapshot-6").exists()


async def test_a_snapshot_waits_in_proportion_to_what_the_last_one_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(config(tmp_path, snapshot_records=10)) as store:
        for reached, spacing, durable in ((10, 0, 10), (20, 1e9, 10), (30, 0, 30)):
            monkeypatch.setattr(keeper, "SPACING", spacing)
            await store.apply(batch([record(n, 1 + n, offset=n) for n in range(reached - 10, reached)]))
            await store.flush()
            await store.settle()
            assert await store.flush() == {(TOPIC, 0): durable}


async def test_a_truncate_is_durable_with_its_offsets(tmp_path: Path) -> None:
    async with opened(config(tmp_path)) as store:
        await fill(store, 10)
        assert await store.truncate(batch([], offset=11), position(6)) == 5
        assert await store.truncate(batch([], offset=5, table="other"), position(6)) == 0
        await store.flush(force=True)
    async with opened(config(tmp_path)) as store:
        assert await store.flush() == {(TOPIC, 0): 11, ("t.public.other", 0): 5}
        assert (await store.apply(batch([record(1, 2, vectors(1, DIMENSION)[0])]))).stale == 1
        assert await store.count(*SEEN) == 5


async def test_text_is_found_by_text(tmp_path: Path) -> None:
    async with opened(config(tmp_path, table={"text": "content"})) as store:
        texts = ["open a tar archive", "parse a json document", "delete a directory tree", ""]
        await store.apply(batch([record(n, n + 1, text, column="content") for n, text in enumerate(texts)]))
        assert (await store.find("a json document", 1))[0].version == (position(2), b'{"m":2}', False)
        hits = await store.search_text(["parsing json", "directory trees"], 1)
        assert [found[0].key for found in hits] == [key_of(1), key_of(2)]
        statistics = await store.statistics()
        assert (statistics.vectors, statistics.without_vector, statistics.dimension) == (3, 1, 64)
    async with opened(config(tmp_path / "b")) as store:
        with pytest.raises(StoreError, match="come from a column"):
            await store.search_text(["x"], 1)


async def test_searches_while_writing_see_only_whole_records(tmp_path: Path) -> None:
    """Every key's vector is always one of two; a hit must carry the score of the version it names."""
    data = normal(vectors(2 * 300, DIMENSION)).astype(np.float32)
    query = data[:4]

    def change(number: int, lsn: int) -> Any:
        if lsn % 7 == 0 and number % 3 == 0:
            return deletion(number, lsn)
        return record(number, lsn, data[2 * number + lsn % 2])

    async with opened(config(tmp_path, metric="ip", snapshot_records=500)) as store:
        await store.apply(batch([change(n, 1) for n in range(300)]))
        stop = asyncio.Event()

        async def searching() -> int:
            searches = 0
            while not stop.is_set():
                for number, hits in enumerate(await store.search(query, 20)):
                    assert len(hits) == 20
                    assert len({hit.key for hit in hits}) == 20
                    for hit in hits:
                        key, lsn = int(hit.key[6:-1]), int(hit.vector[5:-1])
                        assert hit.score == pytest.approx(float(data[2 * key + lsn % 2] @ query[number]), abs=1e-5)
                searches += 1
            return searches

        searchers = [asyncio.create_task(searching()) for _ in range(3)]
        for lsn in range(2, 40):
            await store.apply(batch([change(n, lsn) for n in range(300)]))
            await store.flush()
        stop.set()
        assert min(await asyncio.gather(*searchers)) > 0


async def test_beyond_the_limit_the_index_is_partitioned_and_below_it_exact_again(tmp_path: Path) -> None:
    settings = config(tmp_path, flat_limit=400, nprobe=1)
    retrains = metrics.INDEX_RETRAINS.labels("faiss")._value.get()
    async with opened(settings) as store:
        data = await fill(store, 401)
        later = vectors(401, DIMENSION, seed=8)
        for at in range(0, 401, 20):  # while it is trained, changes and searches go on
            await store.apply(batch([record(n, 5000 + n, later[n]) for n in range(at, min(401, at + 20))]))
            assert len((await store.search(data[:1], 5))[0]) == 5
        await store.apply(batch([deletion(400, 9000)]))
        await store.settle()
        assert (await store.statistics()).kind == "ivf"
        assert metrics.INDEX_RETRAINS.labels("faiss")._value.get() == retrains + 1
        assert await store.count(*SEEN) == 400
        hits = await store.search(later[:400], 1)
        assert [found[0].key for found in hits] == [key_of(n) for n in range(400)]
        assert len((await store.search(later[:1], 400))[0]) == 400  # more partitions until there are k
        await store.flush(force=True)
        before = await held(store)
    async with opened(settings) as store:
        assert (await store.statistics()).kind == "ivf"
        assert await held(store) == before
        await store.apply(batch([deletion(n, 10_000 + n) for n in range(250)]))
        await store.settle()
        assert (await store.statistics()).kind == "flat"
        hits = await store.search(later[250:400], 1)
        assert [found[0].key for found in hits] == [key_of(n) for n in range(250, 400)]


async def test_a_partitioned_index_that_drifts_is_trained_again(tmp_path: Path) -> None:
    async with opened(config(tmp_path, flat_limit=300, retrain_growth=2.0, retrain_imbalance=1.3)) as store:
        await fill(store, 301)
        await store.settle()
        assert store.content is not None
        first: Any = store.content.index
        same = vectors(1, DIMENSION, seed=3)[0]
        near = same + 0.01 * vectors(250, DIMENSION, seed=4)  # all of one kind: one partition swells
        await store.apply(batch([record(1000 + n, 5000 + n, near[n]) for n in range(250)]))
        await store.settle()
        second: Any = store.content.index
        assert second is not first
        await fill(store, 1200, lsn=10_000, seed=9)
        await store.settle()
        third: Any = store.content.index
        assert third is not second
        assert third.trained_on == 1250
        assert await store.count(*SEEN) == 1250


async def test_a_shadow_is_trained_once_of_all_that_it_holds_when_it_is_made_durable(tmp_path: Path) -> None:
    live = FaissStore(config(tmp_path, flat_limit=100, retrain_growth=1.5))
    shadow = await live.shadow()
    try:
        await shadow.open()
        for number in (90, 180, 270, 450):
            await fill(shadow, number, lsn=1000 * number)
        assert (await shadow.statistics()).kind == "flat"
        await shadow.flush(force=True)
        index: Any = shadow.loaded().index
        assert index.trained_on == 450
        await shadow.flush(force=True)
        assert shadow.loaded().index is index
        await live.swap()
    finally:
        await shadow.close()
    async with opened(config(tmp_path, flat_limit=100)) as store:
        assert ((await store.statistics()).kind, await store.count(*SEEN)) == ("ivf", 450)


async def test_a_failed_training_stops_the_consumer_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_args: object) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr("consumers.faiss.training.train", fails)
    async with opened(config(tmp_path, flat_limit=10)) as store:
        data = await fill(store, 11)
        with pytest.raises(StoreError, match=r"training the index failed: no memory"):
            await store.settle()
        assert len((await store.search(data[:1], 11))[0]) == 11
