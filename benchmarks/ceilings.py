"""What Kafka itself takes: its own ProducerPerformance, with the very records of ours, against our reader.

The records' values are taken from a topic that our reader filled, so that size and compressibility are the same; the
tool sends them with acks=all and the same compression, in transactions and without, into as many partitions. It has no
source to read, no rows to decode and no keys to hash (so that its topic cannot be a compacted one). Counted as
everywhere: by who reads the topic.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from benchmarks import source, topic
from benchmarks.bench import Bench, require, timed
from benchmarks.children import Child
from benchmarks.drain import after_warm_up, drain
from benchmarks.engine import Lane, Ours, prepare
from benchmarks.measure import Comparison, Result, Sample
from benchmarks.source import Load
from cdc.config import parse
from cdc.embedded import maven, programs
from cdc.errors import PreconditionError

POM = Path(__file__).with_name("ceilings.xml")
PAYLOADS = 10_000  # different values; the tool draws among them
WAYS = (("in transactions", True), ("idempotent only", False))
TRANSACTION_MS = 100  # about what a chunk of ours takes
TUNED = {"acks": "all", "batch.size": 1 << 20, "linger.ms": 5, "buffer.memory": 128 << 20}


async def run(bench: Bench) -> list[Result]:
    """Ours over the tool, in transactions and without."""
    try:
        jars = tools(bench)
    except PreconditionError as error:
        bench.tell(f"Kafka's producer-perf-test is left out: {error}")
        return []
    load = Load("300 B, 100/tx", bench.size(400_000, 40_000))
    engine = Ours(bench.endpoints.plugin)
    with source.database(bench.endpoints.postgres_dsn) as dsn, source.connect(dsn) as connection:
        source.prepare_notes(connection, load, bench.seed)
        lane = await prepare(bench, connection, engine, dsn, source.NOTES)
        with timed(bench.tell, f"ceilings: {load.changes:,} rows written"):
            source.write_notes(dsn, load, bench.seed)
        source.log_end(connection)
        ours = await drain(bench, connection, engine, lane, load)
        payloads = await values(lane, bench.folder / "payloads")
        found: list[Result] = []
        for name, transactional in WAYS[: bench.size(2, 1)]:
            rates = [await sent(bench, jars, dsn, payloads, load, transactional) for _ in range(2)]
            bench.tell(f"ceilings: producer-perf-test {name} {rates[0]:,.0f} and {rates[1]:,.0f} records/s")
            found.append(
                Comparison(
                    f"{engine.name} over Kafka's own producer", f"producer-perf-test, {name}", "records/s", ours.rate,
                    (rates[0], rates[1]), None, ours.details(),
                )
            )  # fmt: skip
    return found


def tools(bench: Bench) -> Path:
    """Where the tool's jars are. Raises PreconditionError."""
    version = ElementTree.parse(POM).findtext(".//{*}properties/{*}kafka.version")
    return maven.fetched(
        POM, programs.cache_folder() / f"kafka-tools-{version}", f"Kafka {version}'s tools", bench.tell
    )


async def values(lane: Lane, path: Path) -> Path:
    """Some values of a topic, a line each (JSON has no line breaks)."""
    async with topic.committed_reader(lane.config) as consumer:
        consumer.assign(topic.partitions_of(lane.config, lane.table))
        lines: list[bytes] = []
        while len(lines) < PAYLOADS:
            for messages in (await consumer.getmany(timeout_ms=topic.POLL_MS)).values():
                lines += [message.value for message in messages]
    path.write_bytes(b"\n".join(lines[:PAYLOADS]) + b"\n")
    return path


async def sent(bench: Bench, jars: Path, dsn: str, payloads: Path, load: Load, transactional: bool) -> float:
    """Records a second of the tool, into a topic of its own."""
    config = parse(bench.settings(dsn, source.NOTES))
    kafka, name = config.kafka, config.kafka.table_topic(*source.NOTES.split("."))
    await topic.plain(kafka, name, kafka.partitions)
    settings = TUNED | {
        "bootstrap.servers": kafka.bootstrap,
        "compression.type": kafka.compression,
    }
    command = [str(programs.java("auto").path), "-cp", f"{jars}/*", "org.apache.kafka.tools.ProducerPerformance"]
    command += ["--topic", name, "--num-records", str(load.changes), "--throughput", "-1"]
    command += ["--payload-file", str(payloads), "--command-property", *(f"{k}={v}" for k, v in settings.items())]
    if transactional:
        command += ["--transactional-id", name, "--transaction-duration-ms", str(TRANSACTION_MS)]
    samples: list[tuple[Sample, float]] = []
    with Child(command) as child:
        found = await topic.arrival(
            config, source.NOTES, load.changes, child.look, lambda sample: samples.append((sample, 0.0))
        )
    require(found.rows == load.changes, f"the tool sent {found.rows} records")
    return after_warm_up(samples, load.changes)[0]
