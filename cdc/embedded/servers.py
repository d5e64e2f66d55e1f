"""The servers together, in one data folder: started and stopped in parallel."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

from cdc.embedded import postgres, programs
from cdc.embedded.folder import HOST, Folder
from cdc.embedded.identity import Identity
from cdc.embedded.kafka import Kafka, Outside, broker_name
from cdc.embedded.postgres import Postgres
from cdc.embedded.programs import Provider
from cdc.embedded.redis import Redis
from cdc.embedded.server import Server, end
from cdc.errors import PreconditionError

NAMES = ("postgres", "kafka", "redis")
KINDS: Mapping[str, type[Server]] = {"postgres": Postgres, "kafka": Kafka, "redis": Redis}
OWNER_SECONDS = 90.0  # what `cdc up` needs at most to stop its servers


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where clients find the servers; empty for one that was not asked for. The dsn holds the password."""

    postgres_dsn: str = field(repr=False)
    kafka_bootstrap: str  # host:port, of all brokers with commas between
    redis_url: str = field(repr=False)
    provider: Mapping[str, str]  # server → which program serves, for a person
    plugin: Literal["wal2json", "pgoutput"]  # what PostgreSQL can decode with
    kafka_outside: str = ""  # host:port of the listener that tells clients to go on at `kafka_advertised`


def _silent(_: str) -> None:
    """Reports nothing."""


class Servers:
    """Use as a context manager, or call `start` and `stop`; `servers["kafka"]` is a single one of them, and of several
    `brokers`, whose number a data folder keeps, `servers["kafka-2"]` is the next.

    With `kafka_advertised` (host:port, say of a proxy) Kafka gets a second listener for clients that come that way.
    `data` is made when it is missing. `settings` are extra settings a server: `{"redis": {"maxmemory": "1gb"}}`.
    `report` takes sentences for a person.
    """

    def __init__(
        self,
        data: Path,
        *,
        only: Collection[str] = NAMES,
        provider: Provider = "auto",
        report: Callable[[str], None] = _silent,
        settings: Mapping[str, Mapping[str, str]] | None = None,
        kafka_advertised: str = "",
        brokers: int = 1,
    ) -> None:
        unknown = set(only) | set(settings or {})
        if unknown - set(NAMES) or not only:
            raise PreconditionError(f"the servers are {', '.join(NAMES)}, not {', '.join(sorted(unknown))}")
        self.folder = Folder(data)
        self._only = tuple(name for name in NAMES if name in only)
        self._provider: Provider = provider
        self._report = report
        self._settings = settings or {}
        self._kafka_advertised = kafka_advertised
        self._brokers = brokers
        self._servers: dict[str, Server] = {}

    def __enter__(self) -> Endpoints:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __getitem__(self, name: str) -> Server:
        return self._servers[name]

    def start(self) -> Endpoints:
        """Returns when all answer. When one fails, or at Ctrl-C, all are stopped; raises PreconditionError."""
        if not sys.platform.startswith("linux"):
            raise PreconditionError("these servers run on Linux only", hint="use docker/compose.yaml")
        self.folder.lock()
        try:
            self._servers = self._build()
            self._start_all()
        except BaseException:
            self.stop()
            raise
        return self._endpoints()

    def stop(self) -> None:
        """Stops all cleanly, in parallel, and gives the folder back."""
        if self._servers:
            with ThreadPoolExecutor(len(self._servers)) as pool:
                stops = [pool.submit(server.stop) for server in self._servers.values()]
            for done in stops:
                done.result()
        self.folder.unlock()

    def erase(self) -> None:
        """Stops all and removes the data folder and everything in it, also what an earlier process left there."""
        self.stop()
        if self.folder.path.exists():
            self.folder.lock()
            stop_running_servers(self.folder)
            postgres.erase(self.folder)
            shutil.rmtree(self.folder.path)
            self.folder.unlock()

    def _start_all(self) -> None:
        pool = ThreadPoolExecutor(len(self._servers))
        try:
            starts = [pool.submit(server.start) for server in self._servers.values()]
            done, _ = wait(starts, return_when=FIRST_EXCEPTION)
            failed = [one for one in done if one.exception()]
            for one in failed or starts:
                one.result()
        finally:
            for server in self._servers.values():
                server.abandon()
            pool.shutdown()

    def _build(self) -> dict[str, Server]:
        ports = self.folder.ports(tuple(port for name in self._only for port in self._ports_of(name)))
        extra = {name: self._settings.get(name, {}) for name in NAMES}
        servers: dict[str, Server] = {}
        if "postgres" in self._only:
            program = programs.postgres(self._provider)
            servers["postgres"] = Postgres(self.folder, extra["postgres"], program, ports["postgres"], self._report)
        if "kafka" in self._only:
            servers |= self._build_brokers(extra["kafka"], ports)
        if "redis" in self._only:
            servers["redis"] = Redis(self.folder, extra["redis"], programs.redis(self._provider), ports["redis"])
        return servers

    def _ports_of(self, name: str) -> list[str]:
        """What a server's ports are called in the folder."""
        if name != "kafka":
            return [name]
        nodes = range(1, self._brokers + 1)
        wanted = [*map(broker_name, nodes), *map(_controller, nodes)]
        return [*wanted, "outside"] if self._kafka_advertised else wanted

    def _build_brokers(self, settings: Mapping[str, str], ports: Mapping[str, int]) -> dict[str, Server]:
        program = programs.kafka(self._provider, self._report)
        outside = Outside(ports["outside"], self._kafka_advertised) if self._kafka_advertised else None
        controllers = [ports[_controller(node)] for node in range(1, self._brokers + 1)]
        return {
            broker_name(node): Kafka(
                self.folder, settings, program, ports[broker_name(node)], controller, outside if node == 1 else None,
                node=node, controllers=controllers,
            )
            for node, controller in enumerate(controllers, 1)
        }  # fmt: skip

    def _endpoints(self) -> Endpoints:
        dsn = bootstrap = url = outside = ""
        plugin: Literal["wal2json", "pgoutput"] = "pgoutput"
        provider = {}
        for name, server in self._servers.items():
            if isinstance(server, Postgres):
                dsn, plugin = server.dsn, "wal2json" if server.program.wal2json else "pgoutput"
            elif isinstance(server, Kafka):
                bootstrap += f",{server.bootstrap}" if bootstrap else server.bootstrap
                outside += f"{HOST}:{server.outside.port}" if server.outside else ""
            elif isinstance(server, Redis):
                url = server.url
            provider[name] = server.provider
        return Endpoints(dsn, bootstrap, url, provider, plugin, outside)


def stop_running(data: Path) -> list[str]:
    """Ends what runs in a data folder, for `cdc down`: asks its owner by SIGTERM, then sees to what is left.

    Returns what ran: `owner` and the servers' names; nothing when nothing ran. Only processes that are certainly those
    which were started there are signalled.
    """
    folder = Folder(data)
    running = {name: Identity.read(folder.pid_file(name)) for name in ("owner", *_started(folder))}
    owner = running["owner"]
    if owner is not None:
        end(owner, ((signal.SIGTERM, OWNER_SECONDS),))
    stop_running_servers(folder)
    return [name for name, identity in running.items() if identity is not None]


def stop_running_servers(folder: Folder) -> None:
    """Ends the servers whose owner is gone."""
    for name in _started(folder):
        identity = Identity.read(folder.pid_file(name))
        if identity is not None:
            end(identity, KINDS[name.partition("-")[0]].stop_signals)
        folder.pid_file(name).unlink(missing_ok=True)


def _started(folder: Folder) -> list[str]:
    """The servers, and the further brokers that left a pid."""
    return [*NAMES, *sorted(path.stem for path in folder.pid_file("kafka").parent.glob("kafka-*.pid"))]


def _controller(node: int) -> str:
    return "controller" if node == 1 else f"controller-{node}"
