"""The writer on a real broker: what is visible, to whom, in which order, and what is left when it dies."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from cdc.config import Config, parse
from cdc.embedded import Endpoints
from cdc.envelope import TRUNCATE_KEY
from cdc.errors import ConnectError, FencedError, RecordError
from cdc.kafka.chunk import Chunk, Heartbeat
from cdc.kafka.partitioner import murmur2
from cdc.kafka.progress import Progress, read_progress
from cdc.kafka.topics import ensure_topics
from cdc.kafka.writer import Writer
from cdc.position import Position

MIB = 1 << 20
TABLE = ("public", "memories")
Open = Callable[..., Awaitable[Writer]]

DYING_WRITER = """
import asyncio, json, sys
from cdc.config import parse
from cdc.kafka.chunk import Chunk
from cdc.kafka.writer import Writer

async def main() -> None:
    config = parse(json.loads(sys.argv[1]))
    topic = config.kafka.table_topic("public", "memories")
    writer = Writer(config, {topic: 4})
    await writer.start()

    async def hang() -> None:
        print("sent", flush=True)
        await asyncio.Event().wait()

    writer._producer.commit_transaction = hang
    chunk = Chunk()
    for number in range(1000):
        chunk.add(topic, b"lost-%d" % number, b"never committed", 1, [])
    await writer.write(chunk)

asyncio.run(main())
"""


def settings(bootstrap: str, **kafka: Any) -> dict[str, Any]:
    section = {"bootstrap": bootstrap, "prefix": f"writer-{secrets.token_hex(4)}", **kafka}
    return {"postgres": {"dsn": "dbname=none"}, "kafka": section}


@pytest.fixture
def config(servers: Endpoints) -> Config:
    return parse(settings(servers.kafka_bootstrap))


@pytest.fixture
async def opened(config: Config) -> AsyncIterator[Open]:
    """Opens started writers and closes them all."""
    writers: list[Writer] = []

    async def open_writer(own: Config = config) -> Writer:
        writer = Writer(own, await ensure_topics(config.kafka, [TABLE]))
        writers.append(writer)
        await writer.start()
        return writer

    yield open_writer
    for writer in writers:
        await writer.close()


def topic_of(config: Config) -> str:
    return config.kafka.table_topic(*TABLE)


def progress(lsn: int) -> Progress:
    return Progress(source="memories", slot="s", system_id="1", timeline=1, epoch=1, commit_lsn=lsn)


def chunk_of(config: Config, keys: list[bytes], lsn: int = 1, value: bytes | None = b"{}") -> Chunk:
    chunk = Chunk()
    for key in keys:
        chunk.add(topic_of(config), key, value, 1_700_000_000_000, [("cdc.pos", b"0" * 32)])
    chunk.progress = progress(lsn)
    return chunk


def with_limits(config: Config, **kafka: Any) -> Config:
    return config.model_copy(update={"kafka": config.kafka.model_copy(update=kafka)})


async def read_all(config: Config, ends: dict[str, list[int]] | None = None) -> tuple[list[Any], dict[str, list[int]]]:
    """Every committed record until the ends are reached (those of the log when none are given), and the positions."""
    topic = topic_of(config)
    consumer = AIOKafkaConsumer(
        **config.kafka.client_options(),
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, p) for p in range(config.kafka.partitions)]
        wanted = ends[topic] if ends else [end for _, end in sorted((await consumer.end_offsets(partitions)).items())]
        consumer.assign(partitions)
        records: list[Any] = []
        async with asyncio.timeout(30):
            while any([await consumer.position(p) < end for p, end in zip(partitions, wanted, strict=True)]):
                for found in (await consumer.getmany(timeout_ms=100)).values():
                    records += found
        return records, {topic: [await consumer.position(p) for p in partitions]}
    finally:
        await consumer.stop()


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
async def test_records_arrive_where_java_would_put_them(opened: Open, config: Config, compression: str) -> None:
    writer = await opened(with_limits(config, compression=compression))
    keys = [b'{"id":"%d"}' % number for number in range(5000)]
    written = await writer.write(chunk_of(config, keys, value=b"x" * 300))
    assert written.records == 5000
    records, _ = await read_all(config, dict(written.ends))
    assert {r.key: r.partition for r in records} == {k: (murmur2(k) & 0x7FFFFFFF) % 4 for k in keys}
    assert len(records) == 5000
    first = next(r for r in records if r.key == keys[0])
    assert (first.value, first.timestamp, first.headers) == (b"x" * 300, 1_700_000_000_000, (("cdc.pos", b"0" * 32),))


async def test_order_within_a_partition_over_many_batches(opened: Open, config: Config) -> None:
    writer = await opened(with_limits(config, compression="none"))
    chunk = Chunk()
    for number in range(400):  # 12 MiB of three keys: several batches of one partition in one transaction
        chunk.add(topic_of(config), b"key-%d" % (number % 3), b"%05d" % number + b"x" * 30_000, 1, [])
    records, _ = await read_all(config, dict((await writer.write(chunk)).ends))
    assert len(records) == 400
    for partition in range(4):
        numbers = [int(r.value[:5]) for r in records if r.partition == partition]
        assert numbers == sorted(numbers)


async def test_markers_keep_their_place_in_every_partition(opened: Open, config: Config) -> None:
    writer = await opened()
    topic = topic_of(config)
    chunk = Chunk()
    for step in range(3):
        for number in range(20):
            chunk.add(topic, b"%d" % number, b"%d" % step, 1, [])
        if step < 2:
            chunk.mark(topic, TRUNCATE_KEY, b"marker %d" % step, 1, [])
    written = await writer.write(chunk)
    records, _ = await read_all(config, dict(written.ends))
    for partition in range(4):
        values = [r.value for r in records if r.partition == partition]
        assert values == sorted(values, key=[b"0", b"marker 0", b"1", b"marker 1", b"2"].index)
        assert values.count(b"marker 0") == values.count(b"marker 1") == 1


async def test_tombstones(opened: Open, config: Config) -> None:
    writer = await opened()
    written = await writer.write(chunk_of(config, [b"a", b"b"], value=None))
    records, _ = await read_all(config, dict(written.ends))
    assert [r.value for r in records] == [None, None]


async def test_progress_is_read_back_and_is_the_last(opened: Open, config: Config) -> None:
    writer = await opened()
    assert await read_progress(config) is None
    for lsn in range(1, 31):
        await writer.write(chunk_of(config, [b"k"], lsn))
    await writer.close()
    await opened()
    assert await read_progress(config) == progress(30)
    other = config.model_copy(update={"source_name": "other"})
    assert await read_progress(other) is None


async def test_heartbeat_carries_the_ends_with_its_own_chunk(opened: Open, config: Config) -> None:
    writer = await opened()
    chunk = chunk_of(config, [b"%d" % n for n in range(50)])
    chunk.heartbeat = Heartbeat(1_700_000_000_000_123, Position(1, 2, 3))
    written = await writer.write(chunk)
    value = await last_heartbeat(config)
    assert value == {
        "ts_us": 1_700_000_000_000_123,
        "position": Position(1, 2, 3).encode().decode(),
        "ends": written.ends,
    }
    records, _ = await read_all(config, value["ends"])
    assert len(records) == 50
    assert written.ends[topic_of(config)] == [1 + max(r.offset for r in records if r.partition == p) for p in range(4)]


async def last_heartbeat(config: Config) -> Any:
    consumer = AIOKafkaConsumer(
        config.kafka.heartbeat_topic,
        **config.kafka.client_options(),
        isolation_level="read_committed",
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        async with asyncio.timeout(30):
            return json.loads((await consumer.getone()).value)
    finally:
        await consumer.stop()


async def test_position_reaches_ends_behind_markers_and_aborted_records(opened: Open, config: Config) -> None:
    """What freshness rests on: a new writer's ends lie behind markers, where no record's offset leads."""
    writer = await opened()
    keys = [b"%d" % n for n in range(40)]
    await writer.write(chunk_of(config, keys))
    refused = await opened(with_limits(config, max_record_bytes=128 * MIB, compression="none"))
    with pytest.raises(RecordError):
        await refused.write(oversized(config, keys))
    third = await opened()
    ends = dict(third.ends)
    records, positions = await read_all(config, ends)
    assert sorted(r.key for r in records) == sorted(keys)
    assert positions == ends
    for partition, end in enumerate(ends[topic_of(config)]):
        assert end > 1 + max(r.offset for r in records if r.partition == partition)


def oversized(config: Config, keys: list[bytes]) -> Chunk:
    """A chunk whose last record the topic refuses, and all else of it with it."""
    chunk = chunk_of(config, [b"aborted-" + key for key in keys], lsn=99)
    chunk.add(topic_of(config), b"large", bytes(config.kafka.max_record_bytes + 1), 1, [])
    chunk.heartbeat = Heartbeat(1, Position(1, 99, 0))
    return chunk


async def test_one_refused_record_voids_its_whole_chunk(opened: Open, config: Config) -> None:
    await (await opened()).write(chunk_of(config, [b"before"], lsn=1))
    writer = await opened(with_limits(config, max_record_bytes=128 * MIB, compression="none"))
    with pytest.raises(RecordError, match=r"larger than that topic's max\.message\.bytes") as refused:
        await writer.write(oversized(config, [b"%d" % n for n in range(40)]))
    assert refused.value.reason == "too_large"
    assert topic_of(config) in refused.value.message
    with pytest.raises(ConnectError, match="closed"):
        await writer.write(chunk_of(config, [b"after"]))
    again = await opened()
    assert await read_progress(config) == progress(1)
    written = await again.write(chunk_of(config, [b"after"], lsn=2))
    records, _ = await read_all(config, dict(written.ends))
    assert [r.key for r in records if r.key not in (b"before", b"after")] == []
    assert await read_progress(config) == progress(2)


async def test_a_record_above_the_limit_costs_nothing_else(opened: Open, config: Config) -> None:
    writer = await opened(with_limits(config, max_record_bytes=MIB))
    chunk = chunk_of(config, [b"small"])
    chunk.add(topic_of(config), b"large", bytes(MIB + 1), 1, [])
    with pytest.raises(RecordError, match="more than the limit of 1048576") as refused:
        await writer.write(chunk)
    assert refused.value.reason == "too_large"
    assert "'large'" not in str(refused.value), "keys are values too"
    assert (await writer.write(chunk_of(config, [b"small"]))).records == 1, "nothing was begun, so it goes on"


@pytest.mark.parametrize("compression", ["none", "zstd"])
async def test_forty_megabytes_in_one_record(opened: Open, config: Config, compression: str) -> None:
    writer = await opened(with_limits(config, compression=compression))
    value = secrets.token_bytes(40_000_000)
    chunk = chunk_of(config, [b"%d" % n for n in range(100)])
    chunk.add(topic_of(config), b"vast", value, 1, [])
    chunk.add(topic_of(config), b"vaster", value, 1, [])
    records, _ = await read_all(config, dict((await writer.write(chunk)).ends))
    assert [r.value == value for r in records if r.key.startswith(b"vast")] == [True, True]
    assert len(records) == 102


async def test_a_newer_writer_fences_the_older(opened: Open, config: Config) -> None:
    older = await opened()
    await older.write(chunk_of(config, [b"older"], lsn=1))
    newer = await opened()
    with pytest.raises(FencedError, match="another writer") as fenced:
        await older.write(chunk_of(config, [b"fenced"], lsn=2))
    assert "one reader" in fenced.value.hint
    written = await newer.write(chunk_of(config, [b"newer"], lsn=3))
    records, _ = await read_all(config, dict(written.ends))
    assert sorted(r.key for r in records) == [b"newer", b"older"]
    assert await read_progress(config) == progress(3)


async def test_killed_inside_a_transaction(opened: Open, config: Config) -> None:
    first = await opened()
    await first.write(chunk_of(config, [b"before"], lsn=1))
    await first.close()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DYING_WRITER, json.dumps(plain(config)), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert (await process.stdout.readline()).strip() == b"sent"
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    after = await opened()
    assert await read_progress(config) == progress(1), "what the dead one sent was never committed"
    keys = [b"lost-%d" % n for n in range(1000)]
    written = await after.write(chunk_of(config, keys, lsn=2))
    records, _ = await read_all(config, dict(written.ends))
    assert sorted(r.key for r in records) == sorted([b"before", *keys]), "each once"
    assert {r.value for r in records} == {b"{}"}


def plain(config: Config) -> dict[str, Any]:
    kafka = {"bootstrap": config.kafka.bootstrap, "prefix": config.kafka.prefix}
    return {"postgres": {"dsn": "dbname=none"}, "kafka": kafka}


async def test_at_least_once_needs_no_transaction(opened: Open, config: Config) -> None:
    writer = await opened(with_limits(config, delivery="at-least-once"))
    keys = [b"%d" % n for n in range(100)]
    chunk = chunk_of(config, keys, lsn=5)
    chunk.heartbeat = Heartbeat(1, Position(1, 5, 0))
    written = await writer.write(chunk)
    records, positions = await read_all(config, dict(written.ends))
    assert sorted(r.key for r in records) == sorted(keys)
    assert positions == written.ends, "no transaction markers"
    assert await read_progress(config) == progress(5)
    assert (await last_heartbeat(config))["ends"] == written.ends


async def test_no_broker_is_one_sentence(config: Config) -> None:
    nowhere = with_limits(config, bootstrap="127.0.0.1:1")
    with pytest.raises(ConnectError, match="cannot be reached"):
        await Writer(nowhere, {}).start()
    with pytest.raises(ConnectError, match="cannot be reached"):
        await read_progress(nowhere)


async def test_a_topic_that_vanished_ends_in_time(opened: Open, config: Config) -> None:
    writer = await opened(with_limits(config, transaction_timeout_seconds=2))
    await writer.add_topic(topic_of(config), 4)
    writer._partitions["nobody.made.this"] = 1
    writer._ends = {**writer.ends, "nobody.made.this": [0]}
    chunk = Chunk()
    chunk.add("nobody.made.this", b"k", b"v", 1, [])
    began = time.monotonic()
    with pytest.raises(ConnectError):
        await writer.write(chunk)
    print("gave up after", time.monotonic() - began, "s")
    assert not [t for t in asyncio.all_tasks() if "Sender" in repr(t)], "nothing goes on behind the error"
