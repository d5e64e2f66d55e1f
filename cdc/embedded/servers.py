"""The three servers together, in one data folder: started and stopped in parallel."""

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
from cdc.embedded.kafka import Kafka, Outside
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
    kafka_bootstrap: str
    redis_url: str = field(repr=False)
    provider: Mapping[str, str]  # server → which program serves, for a person
    plugin: Literal["wal2json", "pgoutput"]  # what PostgreSQL can decode with
    kafka_outside: str = ""  # host:port of the listener that tells clients to go on at `kafka_advertised`


def _silent(_: str) -> None:
    """Reports nothing."""


class Servers:
    """Use as a context manager, or call `start` and `stop`; `servers["kafka"]` is a single one of them.

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
        also = ("controller", "outside") if self._kafka_advertised else ("controller",)
        wanted = [port for name in self._only for port in ((name, *also) if name == "kafka" else (name,))]
        ports = self.folder.ports(tuple(wanted))
        extra = {name: self._settings.get(name, {}) for name in NAMES}
        servers: dict[str, Server] = {}
        if "postgres" in self._only:
            program = programs.postgres(self._provider)
            servers["postgres"] = Postgres(self.folder, extra["postgres"], program, ports["postgres"], self._report)
        if "kafka" in self._only:
            jvm = programs.kafka(self._provider, self._report)
            outside = Outside(ports["outside"], self._kafka_advertised) if self._kafka_advertised else None
            servers["kafka"] = Kafka(self.folder, extra["kafka"], jvm, ports["kafka"], ports["controller"], outside)
        if "redis" in self._only:
            servers["redis"] = Redis(self.folder, extra["redis"], programs.redis(self._provider), ports["redis"])
        return servers

    def _endpoints(self) -> Endpoints:
        dsn = bootstrap = url = outside = ""
        plugin: Literal["wal2json", "pgoutput"] = "pgoutput"
        provider = {}
        for name, server in self._servers.items():
            if isinstance(server, Postgres):
                dsn, plugin = server.dsn, "wal2json" if server.program.wal2json else "pgoutput"
            elif isinstance(server, Kafka):
                bootstrap = server.bootstrap
                outside = f"{HOST}:{server.outside.port}" if server.outside else ""
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
    running = {name: Identity.read(folder.pid_file(name)) for name in ("owner", *NAMES)}
    owner = running["owner"]
    if owner is not None:
        end(owner, ((signal.SIGTERM, OWNER_SECONDS),))
    stop_running_servers(folder)
    return [name for name, identity in running.items() if identity is not None]


def stop_running_servers(folder: Folder) -> None:
    """Ends the servers whose owner is gone."""
    for name, kind in KINDS.items():
        identity = Identity.read(folder.pid_file(name))
        if identity is not None:
            end(identity, kind.stop_signals)
        folder.pid_file(name).unlink(missing_ok=True)
