"""Kafka killed, bounced, full, its topics made anew: progress within a minute of its return, nothing lost or doubled.

A session writes and a read_committed consumer reads all the while. The reader and the consumers live in this process:
one that ended would end the test.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdc.config import Config
from cdc.embedded import Endpoints, Servers
from tests.chance import seeded
from tests.comparison import assert_equal_everywhere, assert_in_order
from tests.crash.disk import Disk, mounted
from tests.crash.kafka_cluster import (
    PROMISE_SECONDS,
    assert_seen_once,
    brokers,
    names,
    progress_again,
    with_kafka,
    witness,
    writing,
)
from tests.pipeline import MEMORIES, config_of, pipeline, source
from tests.waiting import until

NODES = 3
ROUNDS = int(os.environ.get("CDC_KAFKA_ROUNDS", "1"))  # rolling bounces: each takes every broker away, once by SIGTERM
DISK_BYTES = 64 << 20
KILLS = 3 * ROUNDS


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A Kafka of one node."""
    with brokers(tmp_path_factory.mktemp("single"), 1) as own:
        yield own


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A Kafka of three."""
    with brokers(tmp_path_factory.mktemp("cluster"), NODES) as own:
        yield own


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk", DISK_BYTES) as made:
        yield made


def made(servers: Endpoints, dsn: str, folder: Path, own: Servers, count: int) -> Config:
    """A config over our own Kafka, with as many copies as it has nodes."""
    copies = {"replication_factor": count, "min_insync_replicas": max(1, count - 1)}
    config = config_of(with_kafka(servers, own, count), dsn, folder, kafka=copies)
    with source(config) as connection:
        connection.execute(MEMORIES)
    return config


async def test_a_single_broker_is_killed(servers: Endpoints, dsn: str, single: Servers, tmp_path: Path) -> None:
    config, broker, taken = made(servers, dsn, tmp_path, single, 1), single["kafka"], []
    async with pipeline(config) as running:
        await running.caught_up()
        async with witness(config) as seen:
            with writing(config, seeded()) as workload:
                for _ in range(KILLS):
                    before = workload.transactions
                    await asyncio.to_thread(broker.kill)
                    await asyncio.to_thread(broker.start)
                    taken.append(await progress_again(running))
                    assert workload.transactions > before
            await running.caught_up()
            assert_in_order(await assert_seen_once(config, seen))
        await assert_equal_everywhere(running)
    print(f"one broker, SIGKILL {KILLS} times: progress {', '.join(f'{s:.1f}' for s in taken)} s after its return")


@pytest.mark.parametrize("clean", [True, False], ids=["clean", "hard"])
async def test_a_rolling_bounce(servers: Endpoints, dsn: str, cluster: Servers, tmp_path: Path, clean: bool) -> None:
    """Each broker in turn, so that every coordinator and every partition's leader moves."""
    config, taken = made(servers, dsn, tmp_path, cluster, NODES), []
    async with pipeline(config) as running:
        await running.caught_up()
        async with witness(config) as seen:
            with writing(config, seeded()) as workload:
                for name in names(NODES) * ROUNDS:
                    before = workload.transactions
                    await asyncio.to_thread(cluster[name].stop if clean else cluster[name].kill)
                    away = await progress_again(running)  # two of three go on
                    await asyncio.to_thread(cluster[name].start)
                    taken.append((away, await progress_again(running)))
                    assert workload.transactions > before
            await running.caught_up()
            assert_in_order(await assert_seen_once(config, seen))
        await assert_equal_everywhere(running)
    figures = ", ".join(f"{away:.1f}/{back:.1f}" for away, back in taken)
    print(f"three brokers, {'SIGTERM' if clean else 'SIGKILL'} each: progress {figures} s after it left/came back")


async def test_a_full_disk(servers: Endpoints, dsn: str, disk: Disk, tmp_path: Path) -> None:
    """The broker ends itself, as Kafka does without a log folder it can write; with space again it is started."""
    with brokers(tmp_path / "kafka", 1, log_dirs=str(disk.path / "log")) as own:
        config, broker = made(servers, dsn, tmp_path, own, 1), own["kafka"]
        async with pipeline(config) as running:
            await running.caught_up()
            async with witness(config) as seen:
                with writing(config, seeded()) as workload:
                    disk.leave(0)
                    await until(lambda: not broker.running, "a broker that ends itself", PROMISE_SECONDS)
                    before = workload.transactions
                    await until(lambda: workload.transactions > before + 100, "writes while Kafka is away")
                    disk.clear()
                    await asyncio.to_thread(broker.stop)  # what is left of the process
                    await asyncio.to_thread(broker.start)
                    seconds = await progress_again(running)
                await running.caught_up()
                assert_in_order(await assert_seen_once(config, seen))
            await assert_equal_everywhere(running)
        print(f"Kafka's disk full: progress {seconds:.1f} s after the broker's return")
