"""A slot that is lost: the alert, the resync, and reads that go on all the while. More of it: test_refusals.py.

Also a snapshot that is asked for: it takes away what was deleted unseen, as a resync does.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import redis
from prometheus_client import REGISTRY

from cdc.config import Config, parse
from cdc.embedded import Endpoints
from cdc.embedded.folder import HOST, Folder, free_port
from cdc.errors import GapError
from cdc.kafka.progress import Progress, read_progress
from cdc.reader import Reader
from cdc.resync import resync
from cdc.source.slot import read_slot
from cdc.source.watch import show_slot
from tests.comparison import assert_equal_everywhere, assert_in_order
from tests.crash.cluster import Cluster
from tests.pipeline import (
    DIMENSION,
    MEMORIES,
    CommandChild,
    ReaderTask,
    Running,
    config_of,
    emit,
    pipeline,
    settings,
    source,
    written,
)
from tests.prometheus import Prometheus
from tests.waiting import LIMIT_SECONDS, until

PROGRAM = shutil.which("prometheus")
NAME = "public.memories"
KEEP_BYTES = 64 << 20
STAYING = range(1, 200)  # rows that are there before and after
ROWS = (
    "INSERT INTO memories (id, content, embedding) SELECT n, 't', array[n,0,0,0,0,0,0,1] FROM generate_series({}, {}) n"
)


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """It keeps little WAL for a slot, and makes a checkpoint when it is told to."""
    keep = {"max_slot_wal_keep_size": f"{KEEP_BYTES >> 20}MB", "max_wal_size": "1GB"}
    made = Cluster(tmp_path_factory.mktemp("forgetful"), keep)
    try:
        yield made
    finally:
        made.erase()


class Prober:
    """Reads rows of Redis and searches the index, as applications do, until it is stopped; keeps what it missed."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._done = threading.Event()
        self.reads = self.searches = 0
        self.missed: list[str] = []

    def read(self) -> None:
        """In a thread."""
        with redis.Redis.from_url(self._running.config.redis.url) as client:
            while not self._done.is_set():
                for number in STAYING:
                    found = client.hget(f"memories:{number}", "content")
                    self.reads += 1
                    if found != b"t":
                        self.missed.append(f"Redis: {number} is {found!r}")

    async def search(self) -> None:
        """In the index's own loop."""
        while not self._done.is_set():
            for number in STAYING:
                vector = np.array([[number, *[0] * (DIMENSION - 2), 1]], dtype=np.float32)
                (hits,) = await self._running.index.search(vector, 1)
                keys = [json.loads(hit.key)["id"] for hit in hits]
                self.searches += 1
                if keys != [number]:
                    self.missed.append(f"FAISS: {number} is {keys}")
                await asyncio.sleep(0)

    def stop(self) -> None:
        self._done.set()


async def test_an_invalidated_slot_and_a_resync_under_reads(
    servers: Endpoints, cluster: Cluster, tmp_path: Path
) -> None:
    """Every row that is there before and after can be read at every moment of the resync."""
    config = config_of(servers, cluster.dsn, tmp_path)
    cluster.query(MEMORIES)
    cluster.query(ROWS.format(1, 260))
    async with pipeline(config) as running:
        await running.caught_up()
        await running.source.stop()
        cluster.query("DELETE FROM memories WHERE id > 250")
        cluster.query(ROWS.format(300, 320))
        await asyncio.to_thread(invalidate, config)
        with pytest.raises(GapError, match=r"invalidated.*all changes since .*committed") as caught:
            await asyncio.wait_for(Reader(config, gap_seconds=0).run(), LIMIT_SECONDS)
        print("refused:", caught.value)
        prober = Prober(running)
        reading = asyncio.ensure_future(asyncio.to_thread(prober.read))
        searching = asyncio.ensure_future(prober.search())
        try:
            await until(lambda: prober.reads > 500 and prober.searches > 100, "reads before")
            await resync(config)
            running.source = ReaderTask(config)
            await running.caught_up()
        finally:
            prober.stop()
            await asyncio.gather(reading, searching)
        assert not prober.missed, prober.missed[:5]
        assert_in_order(await assert_equal_everywhere(running))
    print(f"{prober.reads} reads and {prober.searches} searches during the resync, none missed a row")


def invalidate(config: Config) -> None:
    """More WAL than the slot may hold, and a checkpoint, which removes it. The metrics said so before, by what the
    alert CdcSlotLowOnWal pages on."""
    with source(config) as connection:
        assert share_left(connection, config) > 0.5
        while (share := share_left(connection, config)) >= 0.2:
            write_wal(connection)
        print(f"share of the slot's WAL that is left, as the metrics tell it: {share:.2f}")
        for _ in range(10):
            write_wal(connection)
            connection.execute("CHECKPOINT")
            slot = read_slot(connection, config.postgres.slot)
            if slot is not None and slot.lost:
                return
    raise AssertionError(f"the slot is {slot}")


def share_left(connection: psycopg.Connection, config: Config) -> float:
    """The rule's cdc:slot_safe_ratio, of what the reader would export now."""
    slot = read_slot(connection, config.postgres.slot)
    assert slot is not None
    assert not slot.lost
    show_slot(slot)
    labels = {"slot": slot.name}
    safe, retained = (
        REGISTRY.get_sample_value(name, labels) for name in ("cdc_slot_safe_wal_bytes", "cdc_slot_retained_wal_bytes")
    )
    assert safe is not None
    assert retained is not None
    return safe / (safe + retained)


def write_wal(connection: psycopg.Connection) -> None:
    """A segment of 16 MiB, most of it empty."""
    connection.execute("SELECT pg_logical_emit_message(false, 'filler', repeat('x', 1 << 20))")
    connection.execute("SELECT pg_switch_wal()")


@contextmanager
def watched(folder: Path, port: int) -> Iterator[Prometheus]:
    """A Prometheus that scrapes a reader; nothing listens where consumers and gateway should be."""
    assert PROGRAM is not None
    place = Folder(folder)
    place.lock()
    nobody = f"{HOST}:{free_port({port})}"
    others = dict.fromkeys(("cdc-redis", "cdc-faiss", "cdc-gateway"), nobody)
    server = Prometheus(place, PROGRAM, {"cdc-reader": f"{HOST}:{port}"} | others)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        place.unlock()


def firing(prometheus: Prometheus) -> set[str]:
    return {alert["labels"]["alertname"] for alert in prometheus.alerts("firing")}


@pytest.mark.skipif(PROGRAM is None, reason="there is no prometheus; `make setup` installs it")
async def test_a_gap_raises_the_alert_until_the_resync(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    port = free_port(set())
    data = settings(servers, dsn, tmp_path, metrics={"reader_port": port})
    config = parse(data)
    with source(config) as connection, watched(tmp_path / "prometheus", port) as prometheus:
        connection.execute(MEMORIES)
        with child(data, tmp_path) as reader:
            await reached(config, 0)
            await until(
                lambda: bool(prometheus.query("cdc_source_gap")) and "CdcSourceGap" not in firing(prometheus), "quiet"
            )
            assert reader.stop() == 0
        connection.execute(ROWS.format(1, 5))
        connection.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", [config.postgres.slot])
        with child(data, tmp_path) as refused:
            await until(lambda: "CdcSourceGap" in firing(prometheus), "the alert")
            assert "lost to the stream" in refused.log.read_text()
        assert "CdcSourceGap" in firing(prometheus), "it outlives the reader"
        began = await resync(config)
        with child(data, tmp_path):
            await reached(config, began.end_lsn)
            await until(lambda: "CdcSourceGap" not in firing(prometheus), "the alert cleared")


@contextmanager
def child(data: Mapping[str, Any], folder: Path) -> Iterator[CommandChild]:
    """A reader as a process."""
    made = CommandChild(data, folder, "reader")
    try:
        yield made
    finally:
        made.kill()


async def reached(config: Config, beyond: int) -> None:
    """Until progress is beyond an LSN."""

    async def there() -> bool:
        progress = await read_progress(config)
        return progress is not None and progress.end_lsn > beyond

    await until(there, "progress")


def done_beyond(lsn: int) -> Any:
    def done(progress: Progress) -> bool:
        state = progress.snapshots.get(NAME)
        return state is not None and state.done and progress.commit_lsn > lsn

    return done


async def test_a_snapshot_asked_for_removes_rows_deleted_unseen(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    """Unseen because the table had no replica identity, which the config allows. Changes go on meanwhile."""
    config = config_of(servers, dsn, tmp_path, postgres={"missing_identity": "allow"})
    with source(config) as connection:
        connection.execute(MEMORIES)
        connection.execute(ROWS.format(1, 100))
        async with pipeline(config) as running:
            await running.caught_up()
            connection.execute("ALTER TABLE memories REPLICA IDENTITY NOTHING")
            connection.execute("DELETE FROM memories WHERE id <= 30")
            connection.execute("ALTER TABLE memories REPLICA IDENTITY DEFAULT")
            connection.execute("UPDATE memories SET who = 'seen' WHERE id = 50")
            await running.caught_up()
            with pytest.raises(AssertionError, match="the topic differs"):
                await assert_equal_everywhere(running)
            request = json.dumps({"kind": "snapshot", "table": ["public", "memories"]}).encode()
            asked = await asyncio.to_thread(emit, config, request)
            for number in range(40, 60):
                connection.execute("UPDATE memories SET who = 'meanwhile' WHERE id = %s", [number])
                connection.execute("DELETE FROM memories WHERE id = %s", [number + 30])
                connection.execute(
                    "INSERT INTO memories (id, embedding) VALUES (%s, array[1,2,3,4,5,6,7,8])", [-number]
                )
            await written(config, running.source, done_beyond(asked))
            await running.caught_up()
            assert_in_order(await assert_equal_everywhere(running))


async def test_a_table_selected_again_loses_what_was_deleted_meanwhile(
    servers: Endpoints, dsn: str, tmp_path: Path
) -> None:
    config = config_of(servers, dsn, tmp_path, postgres={"tables": [NAME, "public.other"]})
    without = config.model_copy(update={"postgres": config.postgres.model_copy(update={"tables": ("public.other",)})})
    with source(config) as connection:
        connection.execute(MEMORIES)
        connection.execute("CREATE TABLE other (id int PRIMARY KEY)")
        connection.execute(ROWS.format(1, 60))
        async with pipeline(config) as running:
            await running.caught_up()
            await running.source.stop()
            other = ReaderTask(without)
            await written(without, other)
            connection.execute("DELETE FROM memories WHERE id > 40")
            connection.execute("INSERT INTO other VALUES (1)")
            await written(without, other)
            await other.stop()
            running.source = ReaderTask(config)
            await running.caught_up()
            assert_in_order(await assert_equal_everywhere(running))
