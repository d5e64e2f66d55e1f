"""PostgreSQL that crashes under load, comes late, or has a full disk: the pipeline goes on by itself, and all is equal.

What a writer was told is committed is there afterwards, once; no reader is restarted by the test.
`CDC_CRASH_ROUNDS` makes more crashes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from prometheus_client import REGISTRY

from cdc.config import Config
from cdc.embedded import Endpoints
from tests.chance import seeded
from tests.comparison import assert_equal_everywhere, assert_in_order
from tests.crash.cluster import Cluster, prepared
from tests.crash.disk import Disk, mounted
from tests.pipeline import Running, pipeline, source
from tests.waiting import until

ROUNDS = int(os.environ.get("CDC_CRASH_ROUNDS", "2"))
MOUNT_BYTES = 224 << 20
ROOM_BYTES = 20 << 20  # left on the full disk: one more segment of WAL (16 MiB), and not two
SEGMENT_BYTES = 16 << 20


class Writer:
    """A session that inserts, updates and deletes, and connects again when the server is back. Ids in `told` were
    acknowledged and are never deleted; those in `asked` may be there."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._done = threading.Event()
        self.asked: set[int] = set()
        self.told: set[int] = set()
        self.refused = 0

    def run(self) -> None:
        number = 0
        while not self._done.is_set():
            try:
                with source(self._config) as connection:
                    while not self._done.wait(0.002):
                        number += 1
                        self._change(connection, number)
            except psycopg.OperationalError:
                self.refused += 1
                self._done.wait(0.05)

    def _change(self, connection: psycopg.Connection, number: int) -> None:
        keeps = number % 3 > 0
        if keeps:
            self.asked.add(number)
        with connection.transaction():
            connection.execute(
                "INSERT INTO memories (id, content, embedding) VALUES (%s, 'new', array[%s::real,0,0,0,0,0,0,1])",
                [number, number],
            )
            connection.execute("UPDATE memories SET content = 'old' WHERE id = %s", [number - 1])
            connection.execute("DELETE FROM memories WHERE id = %s AND id %% 3 = 0", [number - 3])
        if keeps:
            self.told.add(number)

    def stop(self) -> None:
        self._done.set()


@contextmanager
def writing(config: Config) -> Iterator[Writer]:
    writer = Writer(config)
    thread = threading.Thread(target=writer.run)
    thread.start()
    try:
        yield writer
    finally:
        writer.stop()
        thread.join()


async def moves(running: Running) -> float:
    """Waits until progress moves; the seconds that took."""
    begun = time.monotonic()
    reader = running.source.reader
    held = reader.progress.end_lsn if reader.progress else 0
    await until(lambda: bool(reader.progress and reader.progress.end_lsn > held), "progress moving", 60)
    return time.monotonic() - begun


async def test_crashes_under_load(servers: Endpoints, cluster: Cluster, tmp_path: Path) -> None:
    """Immediate stops and SIGKILLs of all its processes, at any moment."""
    chance, config, taken = seeded(), prepared(servers, cluster, tmp_path), []
    async with pipeline(config) as running:
        await running.caught_up()
        with writing(config) as writer:
            for turn in range(ROUNDS):
                told = len(writer.told)
                await until(lambda told=told: len(writer.told) > told + chance.randrange(60), "writes", 60)
                await (cluster.immediate() if turn % 2 else cluster.kill())
                await cluster.start()
                taken.append(await moves(running))
        await running.caught_up()
        records = await assert_equal_everywhere(running)
        assert_in_order(records)
        held = {int(row) for row in ids(config)}
        assert writer.told <= held
        assert {number for number in held if number % 3} <= writer.asked
    print(f"{ROUNDS} crashes, {len(writer.told)} rows acknowledged, {len(records)} records, progress again after "
          f"{', '.join(f'{seconds:.2f}' for seconds in taken)} s")  # fmt: skip


def ids(config: Config) -> list[int]:
    with source(config) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM memories")]


async def test_it_may_be_started_last(servers: Endpoints, cluster: Cluster, tmp_path: Path) -> None:
    config = prepared(servers, cluster, tmp_path)
    await cluster.stop()
    async with pipeline(config) as running:
        labels = {"source": config.source_name, "reason": "ConnectError"}
        await until(lambda: (REGISTRY.get_sample_value("cdc_reader_retries_total", labels) or 0) >= 2, "two tries")
        await cluster.start()
        with writing(config) as writer:
            await until(lambda: len(writer.told) > 20, "writes")
        await running.caught_up()
        assert_in_order(await assert_equal_everywhere(running))


@contextmanager
def small_disk(cluster: Cluster) -> Iterator[Disk]:
    """The cluster's WAL on a file system of its own; the cluster stands still before and after."""
    wal = cluster.server.data / "pg_wal"
    with mounted(cluster.server.home / "disk", MOUNT_BYTES) as disk:
        cluster.server.stop()
        disk.path.chmod(0o755)
        moved(wal, disk.path / "pg_wal")
        wal.symlink_to(disk.path / "pg_wal")
        try:
            yield disk
        finally:
            cluster.server.stop()
            wal.unlink()
            moved(disk.path / "pg_wal", wal)


def moved(old: Path, new: Path) -> None:
    """With owners and modes."""
    subprocess.run(["cp", "-a", str(old), str(new)], check=True)
    shutil.rmtree(old)


async def test_its_disk_is_full(servers: Endpoints, cluster: Cluster, tmp_path: Path) -> None:
    """PostgreSQL panics, cannot even recover, and is started again once there is space."""
    config = prepared(servers, cluster, tmp_path)
    with small_disk(cluster) as disk:
        await cluster.start()
        async with pipeline(config) as running:
            await running.caught_up()
            disk.leave(ROOM_BYTES)
            with writing(config) as writer:
                await until(lambda: len(writer.told) > 20, "writes")
                await asyncio.to_thread(fill, config)
                refusals = writer.refused
                await until(lambda: writer.refused > refusals, "a writer that is refused")
                disk.clear()
                if not cluster.server.running:
                    await cluster.start()
                told = len(writer.told)
                await until(lambda: len(writer.told) > told, "writes again", 60)
                print(f"progress again after {await moves(running):.2f} s")
            await running.caught_up()
            assert_in_order(await assert_equal_everywhere(running))
            assert writer.told <= set(ids(config))


def fill(config: Config) -> None:
    """Writes WAL until the disk is full, which PostgreSQL does not survive."""
    with pytest.raises(psycopg.OperationalError):
        write_wal(config, 4 * MOUNT_BYTES)


def write_wal(config: Config, size: int) -> None:
    with source(config) as connection:
        for _ in range(size // SEGMENT_BYTES):
            connection.execute("SELECT pg_logical_emit_message(false, 'filler', repeat('x', 8 << 20))")
            connection.execute("SELECT pg_switch_wal()")
