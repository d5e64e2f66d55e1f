"""Apache Kafka as a child process: a KRaft node that is broker and controller, alone or one of several.

A JVM spends most of a start on loading classes. The first run writes them to an archive beside the jars when it ends
(class-data sharing, JEP 350), and later starts map that file.
"""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cdc.embedded.folder import HOST, Folder
from cdc.embedded.programs import Kafka as KafkaProgram
from cdc.embedded.server import Server

MIB = 1 << 20
RECORD_BYTES = 64 * MIB  # the largest batch; [kafka] max_record_bytes has the same bound
REQUEST_BYTES = 2 * RECORD_BYTES  # room for several batches in one request
HEAP = ("-Xms128m", "-Xmx768m")  # small, yet holds two requests of that size and the cleaner's map
SMALL_HEAP = ("-Xms96m", "-Xmx448m")  # of one among several
CLEANER_BYTES = 64 * MIB  # the compaction's map: 2.5 million keys a pass
PROBE_TIMEOUT_SECONDS = 5.0
METADATA = struct.pack(
    "!hhihi", 3, 1, 1, -1, 0
)  # api key, version, correlation, no client id, no topics (Kafka protocol guide)


@dataclass(frozen=True, slots=True)
class Outside:
    """A second listener, for clients that come by another way, say through a proxy: it listens on `port`, and tells
    them to go on at `advertised` (host:port). The broker's own traffic does not go there."""

    port: int
    advertised: str


class Kafka(Server):
    """`settings` are those of server.properties. `controllers`: the controller ports of all nodes, in the order of
    their numbers, which begin at 1; three nodes keep three copies of everything, and write while two are there."""

    name = "kafka"
    title = "Kafka"
    stop_signals = ((signal.SIGTERM, 60.0),)  # it closes its logs, and at its first end writes the class archive

    def __init__(
        self,
        folder: Folder,
        settings: Mapping[str, str],
        program: KafkaProgram,
        port: int,
        controller_port: int,
        outside: Outside | None = None,
        *,
        node: int = 1,
        controllers: Sequence[int] = (),
    ) -> None:
        super().__init__(folder, settings)
        self.name = broker_name(node)
        self.node = node
        self.controllers = controllers or (controller_port,)
        self.program = program
        self.port = port
        self.controller_port = controller_port
        self.outside = outside
        self.data = folder.path / self.name
        self._draft: Path | None = None

    @property
    def provider(self) -> str:
        return str(self.program)

    @property
    def bootstrap(self) -> str:
        """host:port for clients."""
        return f"{HOST}:{self.port}"

    def prepare(self) -> None:
        """server.properties at each start; the log folder is formatted once."""
        (self.data / "tmp").mkdir(parents=True, exist_ok=True)
        text = "".join(f"{name}={_escaped(value)}\n" for name, value in self._properties().items())
        (self.data / "server.properties").write_text(text)
        if not Path(self._properties()["log.dirs"], "meta.properties").exists():
            options = [f"--cluster-id={_cluster_id(self.folder)}", f"--config={self.data / 'server.properties'}"]
            self.run([*self._java(), "kafka.tools.StorageTool", "format", *options])

    def command(self) -> list[str]:
        """The JVM."""
        archive = self.program.archive
        if archive is not None and not archive.exists():
            self._draft = archive.with_suffix(f".{os.getpid()}")
            dump = [f"-XX:ArchiveClassesAtExit={self._draft}"]
        else:
            dump = []
        heap = HEAP if len(self.controllers) == 1 else SMALL_HEAP
        return [*self._java(*heap, *dump), "kafka.Kafka", str(self.data / "server.properties")]

    def answers(self) -> bool:
        """Asks for the cluster's metadata, which names the broker once it is registered and takes requests."""
        try:
            with socket.create_connection((HOST, self.port), PROBE_TIMEOUT_SECONDS) as connection:
                connection.sendall(struct.pack("!i", len(METADATA)) + METADATA)
                with connection.makefile("rb") as reply:
                    return self.node in _brokers(reply)
        except (OSError, struct.error):
            return False

    def stop(self) -> None:
        """Ends it; the first clean end leaves the class archive."""
        super().stop()
        archive = self.program.archive
        if self._draft is not None and archive is not None and self._draft.exists():
            for outdated in archive.parent.glob("classes-*.jsa"):  # of a Java that was upgraded since
                outdated.unlink(missing_ok=True)
            self._draft.replace(archive)
        self._draft = None

    def _java(self, *options: str) -> list[str]:
        archive = self.program.archive
        shared = [f"-XX:SharedArchiveFile={archive}"] if archive is not None and archive.exists() else []
        return [
            str(self.program.java.path),
            *options,
            *shared,
            "-Xshare:auto",  # an archive that does not fit is ignored
            "-Xlog:disable",
            "-Xlog:all=error:stderr",  # no warnings about such archives
            "-XX:+ExitOnOutOfMemoryError",  # a broker that limps on is worse than one that ended
            "-XX:-UsePerfData",  # nothing left in /tmp
            f"-Djava.io.tmpdir={self.data / 'tmp'}",  # where the compression libraries unpack themselves
            "-Djava.awt.headless=true",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
            "-cp",
            ":".join(map(str, self.program.jars)),  # in a fixed order, which the archive is bound to
        ]

    def _listeners(self) -> dict[str, str]:
        """Inside, where the broker finds itself, and perhaps outside."""
        own = f"BROKER://{self.bootstrap}"
        listens, tells, names = f"{own},CONTROLLER://{HOST}:{self.controller_port}", own, "BROKER CONTROLLER"
        if self.outside is not None:
            listens += f",OUTSIDE://{HOST}:{self.outside.port}"
            tells += f",OUTSIDE://{self.outside.advertised}"
            names += " OUTSIDE"
        return {
            "listeners": listens,
            "advertised.listeners": tells,
            "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in names.split()),
        }

    def _properties(self) -> dict[str, str]:
        voters = (f"{number}@{HOST}:{port}" for number, port in enumerate(self.controllers, 1))
        copies, least = str(len(self.controllers)), str(max(1, len(self.controllers) - 1))
        return {
            "process.roles": "broker,controller",
            "node.id": str(self.node),
            "controller.quorum.voters": ",".join(voters),
            **self._listeners(),
            "inter.broker.listener.name": "BROKER",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self.data / "log"),
            # A killed broker is let in again when its lease ends. Nobody else could serve its partitions meanwhile, so
            # that is a third of the default, with six chances to renew it.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "auto.create.topics.enable": "false",
            "default.replication.factor": copies,
            "min.insync.replicas": least,
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": "4",  # the default, 50, takes a second to make
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": least,
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": least,
            "group.initial.rebalance.delay.ms": "0",  # a lone consumer need not wait for others
            "message.max.bytes": str(RECORD_BYTES),
            "socket.request.max.bytes": str(REQUEST_BYTES),
            "log.cleaner.dedupe.buffer.size": str(CLEANER_BYTES),
            "log.retention.ms": "-1",
            **self.settings,
        }


def broker_name(node: int) -> str:
    """What `Servers` calls a node: kafka, kafka-2, kafka-3, …"""
    return "kafka" if node == 1 else f"kafka-{node}"


def _cluster_id(folder: Folder) -> str:
    """The same for all nodes of a data folder: 16 bytes in base64, as Kafka wants it."""
    digest = hashlib.sha256(str(folder.path).encode()).digest()
    return base64.urlsafe_b64encode(digest[:16]).decode().rstrip("=")


def _brokers(reply: BinaryIO) -> list[int]:
    """The ids of the brokers in a Metadata response of version 1. Raises struct.error when it is cut."""
    _size, _correlation, count = struct.unpack("!iii", reply.read(12))
    found = []
    for _ in range(count):
        (broker,) = struct.unpack("!i", reply.read(4))
        found.append(broker)
        reply.read(*struct.unpack("!h", reply.read(2)))  # its host
        reply.read(4)  # and port
        reply.read(max(0, *struct.unpack("!h", reply.read(2))))  # and rack, -1 when it has none
    return found


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\")
