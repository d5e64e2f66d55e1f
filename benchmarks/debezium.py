"""Debezium's connector for PostgreSQL on a Kafka Connect worker: what most people run.

Fairly tuned: larger batches and queue, JSON without schemas, acks=all, batches as large as ours, lz4 (with zstd, which
costs us less, it took more CPU time), a heap of 512 MiB. It delivers at least once: a standalone worker has no
exactly-once support, and a distributed one would have more to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from psycopg.conninfo import conninfo_to_dict

from benchmarks.bench import Bench
from benchmarks.children import Child
from benchmarks.engine import Lane, Running
from cdc.embedded import maven, programs
from cdc.embedded.folder import HOST, free_port
from cdc.errors import PreconditionError

POM = Path(__file__).with_name("debezium.xml")
JSON = "org.apache.kafka.connect.json.JsonConverter"
# Of the heaps from 256 MiB to 1 GiB and the collectors tried (G1, parallel, serial), those with the least CPU time; the
# rows of a full queue fit well.
JVM = ("-server", "-Xms512m", "-Xmx512m", "-XX:+UseParallelGC", "-XX:MaxInlineLevel=15", "-Djava.awt.headless=true")
WORKER = {
    "key.converter": JSON,
    "key.converter.schemas.enable": "false",
    "value.converter": JSON,
    "value.converter.schemas.enable": "false",
    "producer.acks": "all",
    "producer.compression.type": "lz4",
    "producer.linger.ms": "5",  # as any Kafka 4 producer; less makes smaller batches and more work
    "producer.batch.size": str(1 << 20),  # as ours; the default of 16 kB would cost it much
    "producer.buffer.memory": str(64 << 20),
    "producer.max.request.size": str(64 << 20),  # as ours
}
CONNECTOR = {
    "name": "peer",
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "tasks.max": "1",
    "plugin.name": "pgoutput",
    "snapshot.mode": "no_data",
    "publication.autocreate.mode": "disabled",
    "max.batch.size": "8192",  # four times the default
    "max.queue.size": "32768",
    "poll.interval.ms": "10",  # the default, 500, would show in its latency
    "provide.transaction.metadata": "false",
}


@dataclass(frozen=True)
class Debezium:
    """Its events have the same shape as ours, so that a delete is two records too."""

    name: str = "Debezium"
    plugin: str = "pgoutput"
    delivery: str = "at least once"
    delete_records: int = 2

    def obtain(self) -> None:
        """Fetches the jars once."""
        programs.java("auto")
        jar_folder()

    @contextmanager
    def running(self, bench: Bench, lane: Lane) -> Iterator[Running]:
        """A worker with files and an offset of its own."""
        folder = bench.folder / f"debezium-{lane.slot}"
        folder.mkdir()
        files = (folder / "worker.properties", folder / "connector.properties")
        write(files[0], worker(lane, folder))
        write(files[1], connector(lane))
        with Child(command(folder, *map(str, files))) as child:
            yield Running(lane, child)


def jar_folder() -> Path:
    """Where the jars are; fetched when they are not there. Raises PreconditionError."""
    debezium, kafka = version("debezium"), version("kafka")
    folder = programs.cache_folder() / f"debezium-{debezium}-kafka-{kafka}"
    return maven.fetched(POM, folder, f"Debezium {debezium}", print)


def version(what: str) -> str:
    """The one that the pom names."""
    found = ElementTree.parse(POM).findtext(f".//{{*}}properties/{{*}}{what}.version")
    if not found:
        raise PreconditionError(f"{POM} names no {what}.version")
    return found


def command(folder: Path, *arguments: str) -> list[str]:
    """The JVM."""
    logs = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", f"-Djava.io.tmpdir={folder}")
    jars = ":".join(map(str, sorted(jar_folder().glob("*.jar"))))
    java = str(programs.java("auto").path)
    return [java, *JVM, *logs, "-cp", jars, "org.apache.kafka.connect.cli.ConnectStandalone", *arguments]


def worker(lane: Lane, folder: Path) -> dict[str, str]:
    """worker.properties."""
    return WORKER | {
        "bootstrap.servers": lane.config.kafka.bootstrap,
        "offset.storage.file.filename": str(folder / "offsets"),
        "listeners": f"http://{HOST}:{free_port(set())}",
    }


def connector(lane: Lane) -> dict[str, str]:
    """connector.properties: the lane's slot, publication and topic."""
    server = conninfo_to_dict(lane.config.postgres.conninfo())
    return CONNECTOR | {
        "database.hostname": str(server["host"]),
        "database.port": str(server["port"]),
        "database.user": str(server["user"]),
        "database.password": str(server["password"]),
        "database.dbname": str(server["dbname"]),
        "slot.name": lane.slot,
        "publication.name": lane.config.postgres.publication,
        "table.include.list": lane.table,
        "topic.prefix": lane.config.kafka.prefix,
    }


def write(path: Path, properties: Mapping[str, str]) -> None:
    """As Java reads it."""
    path.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
