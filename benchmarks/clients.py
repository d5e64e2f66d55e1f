"""Is the Kafka client itself the limit? Ours (aiokafka, with record batches of our own) beside confluent-kafka.

The same records (those that our reader made of 300-byte rows) are written in transactions of 10,000 into as many
partitions, and read by a committed reader which touches what a store needs of each. Every run is a process of its own:
`python -m benchmarks.clients ROLE CONFIG TOPIC NUMBER`. A run's first quarter warms up and is not counted.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from benchmarks import source, topic
from benchmarks.bench import Bench, fill_topic, timed
from benchmarks.children import Child
from benchmarks.measure import Grid, Result
from benchmarks.source import Load
from cdc.config import Config, parse
from cdc.envelope import POSITION_HEADER, VERSION_HEADER
from cdc.kafka.chunk import Chunk, Outgoing
from cdc.kafka.producer import batch_bytes
from cdc.kafka.writer import Writer
from consumers.partitions import FETCH_BYTES, FETCH_WAIT_MS, PARTITION_BYTES, POLL_RECORDS

TRANSACTION = 10_000  # records
SAMPLE = 20_000  # different ones
WARM = 4  # the first of so many parts
POLL_SECONDS = 0.2
ANSWER_SECONDS = 300.0
QUEUED_KIB = 1 << 20  # of confluent's own queue

Mark = Callable[[int], None]  # told how many records are done


class Timer:
    """Rate and CPU time between the first quarter and the end."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._warm: tuple[int, float, float] | None = None

    def __call__(self, done: int) -> None:
        now = (done, time.monotonic(), time.process_time())
        if self._warm is None and done * WARM >= self._number:
            self._warm = now
        if done >= self._number:
            assert self._warm is not None
            rows = done - self._warm[0]
            rate, cpu = rows / (now[1] - self._warm[1]), (now[2] - self._warm[2]) / rows * 1e6
            print(json.dumps({"rate": rate, "cpu_us": cpu}), flush=True)


async def run(bench: Bench) -> list[Result]:
    """Each role twice, in turn."""
    try:
        import confluent_kafka
    except ImportError:
        bench.tell("clients: confluent-kafka is left out, it is not installed")
        return []
    number = bench.size(400_000, 40_000)
    with source.database(bench.endpoints.postgres_dsn) as dsn, source.connect(dsn) as connection:
        load = Load("300 B", SAMPLE)
        source.prepare_notes(connection, load, bench.seed)
        source.write_notes(dsn, load, bench.seed)
        settings = bench.settings(dsn, source.NOTES, postgres={"plugin": bench.endpoints.plugin})
        config = await fill_topic(bench, settings, source.NOTES, SAMPLE)
    path = bench.folder / "clients.json"
    path.write_text(json.dumps(settings))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ROLES}
    for turn in (1, 2):
        for name in ROLES:
            written = f"{config.kafka.prefix}.clients.{turn}.{name.split('-')[0]}"
            if name.endswith("-write"):
                await topic.plain(config.kafka, written, config.kafka.partitions)
            else:
                written = f"{config.kafka.prefix}.clients.{turn}.ours"  # both read the same
            with timed(bench.tell, f"clients: {name}, {number:,} records"), role(path, name, written, number) as child:
                found[name].append(child.answer(ANSWER_SECONDS))
    title = f"Kafka clients (confluent-kafka {confluent_kafka.__version__})"
    return [Grid(title, ("client", "records/s", "µs of CPU a record"), tuple(row(*item) for item in found.items()))]


def role(path: Path, name: str, written: str, number: int) -> Child:
    """One run."""
    return Child([sys.executable, "-m", "benchmarks.clients", name, str(path), written, str(number)])


def row(name: str, runs: Iterable[dict[str, float]]) -> tuple[str, str, str]:
    """Both runs, beside each other."""
    runs = list(runs)
    return (
        name,
        " and ".join(f"{each['rate']:,.0f}" for each in runs),
        " and ".join(f"{each['cpu_us']:.2f}" for each in runs),
    )


# writing


async def sample(config: Config) -> list[Outgoing]:
    """Records as our reader wrote them."""
    async with topic.committed_reader(config) as consumer:
        consumer.assign(topic.partitions_of(config, source.NOTES))
        found: list[Outgoing] = []
        while len(found) < SAMPLE:
            for messages in (await consumer.getmany(timeout_ms=topic.POLL_MS)).values():
                found += [(m.key, m.value, m.timestamp, list(m.headers)) for m in messages]
    return found


def transactions(records: list[Outgoing], number: int) -> Iterator[list[Outgoing]]:
    """Lists of TRANSACTION records, `number` in all."""
    endless = cycle(records)
    for _ in range(number // TRANSACTION):
        yield list(islice(endless, TRANSACTION))


async def ours_write(config: Config, written: str, number: int, mark: Mark) -> None:
    """The reader's writer: the next chunk is prepared while one is written."""
    writer = Writer(config, {written: config.kafka.partitions})
    records = await sample(config)
    await writer.start()
    writing: asyncio.Task[Any] | None = None
    done = 0
    for each in transactions(records, number):
        chunk = Chunk()
        chunk.extend(written, each, 0)
        prepared = writer.prepare(chunk)
        if writing is not None:
            await writing
            mark(done)
        writing = asyncio.create_task(writer.write(chunk, prepared))
        done += len(each)
    assert writing is not None
    await writing
    mark(done)
    await writer.close()


async def confluent_write(config: Config, written: str, number: int, mark: Mark) -> None:
    """librdkafka with the same codec and acks; it chooses partitions by the same hash."""
    from confluent_kafka import Producer

    kafka = config.kafka
    settings = {
        "bootstrap.servers": kafka.bootstrap,
        "transactional.id": written,
        "compression.type": kafka.compression,
        "compression.level": 1,  # as ours
        "partitioner": "murmur2_random",
        "batch.size": batch_bytes(kafka),
        "linger.ms": 5,
        "queue.buffering.max.kbytes": QUEUED_KIB,
        "queue.buffering.max.messages": 10 * TRANSACTION,
    }
    records = await sample(config)
    producer = Producer(settings)
    producer.init_transactions()
    done = 0
    for each in transactions(records, number):
        producer.begin_transaction()
        for key, value, timestamp, headers in each:
            producer.produce(written, value, key, timestamp=timestamp, headers=headers)
        producer.commit_transaction()
        done += len(each)
        mark(done)


# reading


async def ours_read(config: Config, written: str, number: int, mark: Mark) -> None:
    """As the consumers poll."""
    consumer = AIOKafkaConsumer(
        **config.kafka.client_options(), isolation_level="read_committed", auto_offset_reset="earliest",
        fetch_max_bytes=FETCH_BYTES, max_partition_fetch_bytes=PARTITION_BYTES, fetch_max_wait_ms=FETCH_WAIT_MS,
        max_poll_records=POLL_RECORDS,
    )  # fmt: skip
    await consumer.start()
    consumer.assign([TopicPartition(written, place) for place in range(config.kafka.partitions)])
    done = touched = 0
    while done < number:
        for messages in (await consumer.getmany(timeout_ms=int(POLL_SECONDS * 1000))).values():
            touched += sum(touch(m.key, m.value, m.offset, m.timestamp, m.headers) for m in messages)
            done += len(messages)
        mark(done)
    await consumer.stop()


async def confluent_read(config: Config, written: str, number: int, mark: Mark) -> None:
    """librdkafka's consumer, a thousand records at a time."""
    from confluent_kafka import Consumer
    from confluent_kafka import TopicPartition as Place

    settings = {
        "bootstrap.servers": config.kafka.bootstrap,
        "group.id": written,
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        "fetch.max.bytes": FETCH_BYTES,
        "max.partition.fetch.bytes": PARTITION_BYTES,
        "fetch.wait.max.ms": FETCH_WAIT_MS,
        "receive.message.max.bytes": FETCH_BYTES + PARTITION_BYTES,
    }
    consumer = Consumer(settings)
    consumer.assign([Place(written, place, 0) for place in range(config.kafka.partitions)])
    done = touched = 0
    while done < number:
        found = consumer.consume(POLL_RECORDS, POLL_SECONDS)
        touched += sum(touch(m.key(), m.value(), m.offset(), m.timestamp()[1], m.headers()) for m in found)
        done += len(found)
        mark(done)
    consumer.close()


def touch(key: bytes, value: bytes, offset: int, timestamp: int, headers: Iterable[tuple[str, bytes]]) -> int:
    """What a store looks at, so that no client is spared to make it."""
    named = dict(headers)
    return len(key) + len(value) + offset + timestamp + len(named[POSITION_HEADER]) + len(named[VERSION_HEADER])


ROLES: dict[str, Callable[[Config, str, int, Mark], Awaitable[None]]] = {
    "ours-write": ours_write,
    "confluent-write": confluent_write,
    "ours-read": ours_read,
    "confluent-read": confluent_read,
}


def main(name: str, path: str, written: str, number: str) -> None:
    """One line of JSON."""
    config = parse(json.loads(Path(path).read_text()))
    asyncio.run(ROLES[name](config, written, int(number), Timer(int(number))))


if __name__ == "__main__":
    main(*sys.argv[1:])
