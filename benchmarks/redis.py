"""The Redis consumer, a process of its own reading Kafka, against its bare Lua script fed from memory.

The bound plays the very calls the store makes of the same records: taken down once, packed as the protocol's bytes,
and sent over one socket with two calls under way, so that the server never waits for its client. What counts for
ours is the number of keys in Redis.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any

import hiredis
from redis import Redis

from benchmarks import source
from benchmarks.bench import Bench, fill_topic, require, timed
from benchmarks.children import Child
from benchmarks.measure import Comparison, Sample, rate
from cdc.config import Config
from consumers.batches import Polled, batches, to_records
from consumers.redis.sentinel import key_of
from consumers.redis.store import RedisStore
from consumers.replay import Replayer, Span
from consumers.runtime import BATCH_RECORDS
from consumers.store import Batch
from consumers.topics import TableTopics, table_partitions

AIM = 0.5
UNDER_WAY = 2  # calls: one that runs, one that waits in the server's socket
LOOK_SECONDS = 0.005
RECEIVE_BYTES = 1 << 16
PATIENCE_SECONDS = 120.0


async def run(bench: Bench) -> list[Comparison]:
    """Bound, ours, bound again, each into an empty database."""
    rows = bench.size(300_000, 30_000)
    with source.database(bench.endpoints.postgres_dsn) as dsn, source.connect(dsn) as connection:
        source.create_notes(connection)
        source.fill_notes(connection, rows, bench.seed)
        settings = bench.settings(dsn, source.NOTES, postgres={"plugin": bench.endpoints.plugin})
        with timed(bench.tell, f"redis: {rows:,} records put into Kafka"):
            config = await fill_topic(bench, settings, source.NOTES, rows)
    server = Redis.from_url(config.redis.url)
    with timed(bench.tell, "redis: the store's calls taken down"):
        calls, state = await taken_down(config, server)
    play(config, server, calls, state)  # warms the server's memory up
    first = rows / play(config, server, calls, state)
    require(server.dbsize() == rows + 1, "the bound wrote other keys")
    server.flushdb()
    ours, details = consume(bench, server, settings, rows)
    bench.tell(f"redis: consumer {ours:,.0f} records/s, bare script {first:,.0f}")
    again = rows / play(config, server, calls, state)
    server.flushdb()
    server.close()
    return [
        Comparison("Redis consumer", "bare Lua script from memory", "records/s", ours, (first, again), AIM, details)
    ]


async def taken_down(config: Config, server: Any) -> tuple[list[bytes], bytes]:
    """Every call the store makes of the topic, as bytes of the protocol, and the sentinel they need."""
    server.flushdb()
    store = RedisStore(config)
    await store.open()
    calls: list[bytes] = []
    send = store.link.run

    async def note(script: str, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        if script != "apply":
            return await send(script, keys, args)
        sha = server.script_load(_apply_script())
        calls.append(hiredis.pack_command(("EVALSHA", sha, len(keys), *keys, *args)))
        return [len(keys) - 1, 0, 0, []]

    store.link.run = note  # type: ignore[method-assign]
    for batch in await read_batches(config):
        await store.apply(batch)
    await store.close()
    state = server.dump(key_of(config.redis.namespace))
    return calls, state


def _apply_script() -> str:
    from consumers.redis import link

    return link._SOURCES["apply"]


async def read_batches(config: Config) -> list[Batch]:
    """The topics' records as the runtime gives them to a store."""
    topics = TableTopics(config.kafka.prefix)
    found: list[Batch] = []
    async with Replayer(config) as replayer:
        partitions = await table_partitions(config, topics)
        spans = {partition: Span(None, end) for partition, end in (await replayer.ends(partitions)).items()}
        async for (name, number), messages, reached in replayer.read(spans):
            records, _foreign = to_records(messages)
            steps = batches(*topics.split(name), name, {number: Polled(records, reached)}, BATCH_RECORDS)
            found += [step for step in steps if isinstance(step, Batch)]
    return found


def play(config: Config, server: Any, calls: Sequence[bytes], state: bytes) -> float:
    """Seconds to send all calls and have their answers, beginning with an empty store."""
    server.flushdb()
    server.restore(key_of(config.redis.namespace), 0, state)
    options = server.connection_pool.connection_kwargs
    replies = hiredis.Reader()
    with socket.create_connection((options["host"], options["port"])) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        started = time.monotonic()
        answered = 0
        for sent, call in enumerate(calls, 1):
            link.sendall(call)
            while sent - answered >= UNDER_WAY:
                answered += receive(link, replies)
        while answered < len(calls):
            answered += receive(link, replies)
        return time.monotonic() - started


def receive(link: socket.socket, replies: Any) -> int:
    """How many answers came; waits for at least some bytes."""
    replies.feed(link.recv(RECEIVE_BYTES))
    answered = 0
    while (reply := replies.gets()) is not False:
        require(isinstance(reply, list), f"the script refused: {reply}")
        answered += 1
    return answered


def consume(bench: Bench, server: Any, settings: dict[str, Any], rows: int) -> tuple[float, dict[str, float]]:
    """Records a second of ours, between the first keys seen in Redis and the last."""
    with bench.start("redis", settings) as child:
        samples = watch(server, child, rows)
        details = {
            "cpu_seconds_per_million_records": child.cpu_seconds() / rows * 1e6,
            "peak_mib": child.peak_bytes() / (1 << 20),
        }
    return rate(samples), details


def watch(server: Any, child: Child, rows: int) -> list[Sample]:
    """How many records Redis holds, over time; the sentinel is a key too."""
    samples: list[Sample] = []
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not samples or samples[-1].rows < rows:
        child.look()
        held = server.dbsize() - 1
        if held > 0 and (not samples or held > samples[-1].rows):
            samples.append(Sample(time.monotonic(), held))
        require(time.monotonic() < deadline, f"Redis holds {held} of {rows} records")
        time.sleep(LOOK_SECONDS)
    return samples
