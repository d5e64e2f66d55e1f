"""One pipeline as real processes, with its witness and watch: started, armed, killed, and compared with PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import psycopg
import redis

from cdc.commands.index_client import RemoteIndex
from cdc.config import parse
from cdc.embedded import Endpoints
from cdc.embedded.folder import free_port
from cdc.failpoint import VARIABLE
from cdc.source.heartbeat import HEARTBEAT
from consumers.faiss.folder import Home
from consumers.faiss.snapshot import PREFIX, read_manifest
from consumers.redis import RedisStore
from consumers.redis.sentinel import read_sentinel
from tests.comparison import redis_rows, rows_of, texts_of
from tests.conftest import drop_slots
from tests.crash.invariants import Violation, equal, memory_bounded, offsets_behind
from tests.crash.network import Network
from tests.crash.stores import committed
from tests.crash.watch import Watch
from tests.crash.witness import Witness
from tests.crash.workload import SCHEMA, TABLES, Journal
from tests.pipeline import CommandChild, emit, settings, source
from tests.waiting import until

T = TypeVar("T")
SERVICES = {"reader": ("reader",), "redis": ("consume", "redis"), "faiss": ("consume", "faiss")}
DATABASE = 14  # of Redis; a rebuild takes the next one too
COMMAND_SECONDS = 120.0  # for `cdc resync`, `cdc rebuild` …
Rows = dict[str | None, Any]


def lay_out(dsn: str) -> None:
    """Makes the tables of the workload in a fresh database."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(SCHEMA)


class Rig:
    """Everything of one world: names, processes, witness. Two databases of its Redis are its own."""

    def __init__(
        self, servers: Endpoints, dsn: str, folder: Path, journal: Journal, network: Network | None = None
    ) -> None:
        self.folder, self.journal, self.network = folder, journal, network
        self._servers = network.endpoints if network else servers
        self._dsn = network.reach(dsn) if network else dsn
        self.restarts: Counter[str] | None = None  # counts, once set, services that ended, and starts them again
        self.peaks: dict[str, int] = {}
        self._before: Counter[str] = Counter()  # counted in worlds that are gone
        self._begin()

    def _begin(self) -> None:
        """New names for everything."""
        url = urlsplit(self._servers.redis_url)._replace(path=f"/{DATABASE}").geturl()
        self.data = settings(
            self._servers, self._dsn, self.folder,
            postgres={"tables": [f"public.{table}" for table in TABLES], "snapshot_chunk_rows": 20},
            kafka={"transaction_rows": 40},
            redis={"url": url, "check_seconds": 0.5, "batch": 20},
            faiss={"snapshot_seconds": 0.4, "snapshot_records": 40},
            metrics={"redis_port": 0, "faiss_port": 0},
            index={"port": free_port(set())},
        )  # fmt: skip
        self.config = parse(self.data)
        if self.network:
            self.config = self.network.beside(self.config)
        self.witness = Witness(self.config, TABLES)
        self.watch = Watch(self.config, self.witness)
        self.children: dict[str, CommandChild] = {}
        self.may_end: set[str] = set()  # services that are under fault
        self._background: list[asyncio.Task[None]] = []

    async def open(self, reader: str = "") -> None:
        """Empties its Redis, starts the services (the reader armed or not), begins to watch."""
        self._flush()
        self.may_end = {"reader"} if reader else set()
        for name in SERVICES:
            self.start(name, reader if name == "reader" else "")
        loops = (self.witness.run(), self.watch.slot(), self.watch.rows(), self._supervise())
        self._background = [asyncio.ensure_future(loop) for loop in loops]

    async def close(self) -> None:
        """Kills all, and removes the slot."""
        await cancel(*self._background)
        for child in self.children.values():
            child.kill()
        with source(self.config) as connection:
            drop_slots(connection, connection.info.dbname)
        self._flush()

    async def renew(self, reader: str) -> None:
        """Another world over the same database, with a reader that is armed."""
        await self.close()
        self._before = Counter(self.counted())
        self._begin()
        await self.open(reader)

    def _flush(self) -> None:
        for number in (DATABASE, DATABASE + 1):
            with redis.Redis.from_url(self.config.redis.url, db=number) as link:
                link.flushdb()

    # processes

    def start(self, name: str, failpoint: str = "") -> None:
        """A service, armed with `point=action@n` or not."""
        environment = {VARIABLE: failpoint} if failpoint else {}
        self.children[name] = CommandChild(self.data, self.folder, *SERVICES[name], environment=environment)

    async def stop(self, name: str) -> None:
        """SIGTERM, and its end."""
        await asyncio.to_thread(self.children[name].stop)

    def command(self, *arguments: str, failpoint: str = "") -> CommandChild:
        """A command as a process."""
        environment = {VARIABLE: failpoint} if failpoint else {}
        return CommandChild(self.data, self.folder, *arguments, environment=environment)

    async def succeed(self, *arguments: str) -> Any:
        """Runs a command with --json to its end; what it printed. Raises Violation when it fails."""
        child = self.command(*arguments, "--json")
        in_time = await ended(child, COMMAND_SECONDS)
        text = child.log.read_text()
        if not in_time or child.process.returncode != 0:
            raise Violation(f"cdc {' '.join(arguments)} failed: {text[-1500:]}")
        return json.loads(text.splitlines()[-1])

    async def rebuild(self, store: str) -> Any:
        """Rebuilds; returns its report once the running consumer works in the new store."""
        report = await self.succeed("rebuild", store)
        if store == "faiss":
            await until(self._adopted, "the index's process in the rebuilt index")
        return report

    async def _adopted(self) -> bool:
        """It holds the live generation's lock, and has told its group so."""
        live, _replaced = Home(self.config.faiss.path).current()
        owner = (self.config.faiss.path / str(live) / "LOCK").read_text()
        if owner != str(self.children["faiss"].process.pid):
            return False
        try:
            await self.offsets_kept("faiss")
        except Violation:
            return False  # it commits once a second
        return True

    async def slot_free(self) -> None:
        """Waits until PostgreSQL has noticed that the reader is gone."""
        query = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s AND active"
        with source(self.config) as connection:
            name = [self.config.postgres.slot]
            await until(lambda: connection.execute(query, name).fetchone() == (0,), "a free slot")

    async def _supervise(self) -> None:
        """Raises Violation when a service ends that was not killed, or starts it again."""
        while True:
            for name, child in list(self.children.items()):
                if name in self.may_end or child.process.poll() is None:
                    continue
                if self.restarts is not None:
                    self.restarts[name] += 1
                    self.start(name)
                else:
                    raise Violation(f"{name} ended by itself: {child.log.read_text()[-1500:]}")
            await asyncio.sleep(0.05)

    async def guarded(self, work: Coroutine[Any, Any, T]) -> T:
        """Does it while witness, watch and supervision go on; raises what ends one of them."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task, *self._background), return_when=asyncio.FIRST_COMPLETED)
            for other in self._background:
                if other.done():
                    await other
            return await task
        finally:
            await cancel(task)

    def counted(self) -> dict[str, int]:
        """How much was looked at, in all."""
        now = {**self.watch.samples, "records": self.witness.records, "transactions": self.journal.transactions}
        return dict(self._before + Counter(now) - Counter({"transactions": self._before["transactions"]}))

    # comparing

    async def caught_up(self, seconds: float) -> None:
        """Returns once topics and stores hold all that is committed now."""
        deadline = time.monotonic() + seconds
        target = await asyncio.to_thread(emit, self.config, HEARTBEAT)
        await self.witness.caught_up(target, seconds)
        ends = {tuple(place): offset + 1 for place, offset in self.witness.offsets.items()}

        async def in_redis() -> bool:
            held = await self._redis_offsets()
            return all(held.get(place, 0) >= end for place, end in ends.items())

        await until(in_redis, "Redis at the topics' end", deadline - time.monotonic())
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.config.index.port}", trust_env=False) as http:
            await until(lambda: _reached(http, target), "the index at the marker", deadline - time.monotonic())

    async def _redis_offsets(self) -> Mapping[Any, int]:
        store = RedisStore(self.config)
        try:
            held = await read_sentinel(store.link, self.config.redis.namespace)
        finally:
            await store.close()
        return held.offsets if held else {}

    async def check(self, *, gap: bool = False) -> None:
        """Everything that must hold once all are caught up and nobody writes. Raises Violation."""
        self.witness.check(self.journal, gap=gap)
        self.journal.clear()
        self.witness.clear()
        for table, columns in TABLES.items():
            expected = _by_id(await asyncio.to_thread(rows_of, self.config, table, columns))
            equal(f"the topic of {table}", expected, _by_id(texts_of(self.witness.held[table].values(), columns)))
            equal(f"Redis of {table}", expected, _by_id(redis_rows(self.config, columns, table)))
            if table == "memories":
                equal("the index", {key: row["embedding"] for key, row in expected.items()}, await self._index())
        for name, child in self.children.items():
            self.peaks[name] = max(self.peaks.get(name, 0), child.peak_bytes())
            memory_bounded(name, self.peaks[name])

    async def _index(self) -> Rows:
        async with RemoteIndex(self.config) as index:
            keys = [key async for key, _position in index.scan("public", "memories")]
            found = await index.records("public", "memories", keys)
        vectors = [None if vector is None else vector.astype("<f4").tobytes().hex() for _version, vector in found]
        return {str(json.loads(key)["id"]): vector for key, vector in zip(keys, vectors, strict=True)}

    async def offsets_kept(self, name: str) -> None:
        """While a consumer is dead: its group's offsets are not ahead of what its store holds. Raises Violation."""
        group = await committed(self.config, name)
        offsets_behind(group, await self._redis_offsets() if name == "redis" else self._on_disk())

    def _on_disk(self) -> Mapping[Any, int]:
        home = Home(self.config.faiss.path)
        live, _replaced = home.current()
        snapshots = sorted((home.path / str(live)).glob(f"{PREFIX}*"), key=lambda path: int(path.name.split("-")[1]))
        offsets = read_manifest(snapshots[-1]).offsets if snapshots else []
        return {(topic, partition): offset for topic, partition, offset in offsets}


async def _reached(http: httpx.AsyncClient, lsn: int) -> bool:
    """Whether the index's process is up and has applied everything up to `lsn`."""
    try:
        position = (await http.get("/reached")).json()["position"]
    except httpx.TransportError:
        return False  # it starts
    return position is not None and int(position[8:24], 16) >= lsn


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Ends them. Again and again: in Python 3.11 `asyncio.wait_for`, inside aiokafka, loses a cancellation that comes
    together with its result."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _done, pending = await asyncio.wait(pending, timeout=0.5)
    await asyncio.gather(*tasks, return_exceptions=True)


async def ended(child: CommandChild, seconds: float) -> bool:
    """Waits for its end; False, and killed, when that did not come."""
    deadline = time.monotonic() + seconds
    while child.process.poll() is None:
        if time.monotonic() > deadline:
            child.kill()
            return False
        await asyncio.sleep(0.01)
    return True


def _by_id(rows: list[dict[str, str | None]]) -> Rows:
    return {row["id"]: row for row in rows}


@asynccontextmanager
async def rigged(
    servers: Endpoints, dsn: str, folder: Path, journal: Journal, network: Network | None = None
) -> AsyncIterator[Rig]:
    """A world with all three processes running; nothing of it is left behind."""
    rig = Rig(servers, dsn, folder, journal, network)
    try:
        await rig.open()
        yield rig
    finally:
        await rig.close()
