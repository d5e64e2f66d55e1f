"""The FAISS store: what the consumer runtime, the gateway and a rebuild see of the index.

Threads. All changes run in one thread, in order; searches in a pool of their own; snapshots and training in the
background. The event loop never waits for any of them. Durability: memory is ahead of the disk; `flush` returns
the offsets of the newest snapshot on the disk, so that a crash replays from there. After `close` searches still answer
from what was in memory, until `open` has loaded the next: that is what a search sees while a rebuilt index comes in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import faiss

from cdc import log, metrics
from cdc.config import Config
from cdc.errors import ConfigError, ConnectError, DecodeError, StoreError, StoreLost
from consumers.embedder import Embedder, embedder_from
from consumers.faiss.arrays import Vectors
from consumers.faiss.columns import Source, TextColumn, VectorColumn
from consumers.faiss.content import Content, Hit
from consumers.faiss.folder import Generation, Home
from consumers.faiss.ledger import State
from consumers.faiss.snapshot import MANIFEST, Kindred, Taken, load, take, write
from consumers.faiss.training import Training
from consumers.store import Applied, Batch, Offsets, Partition, Version

LOG = log.get(__name__)
T = TypeVar("T")


class Durable(NamedTuple):
    """The newest snapshot on the disk."""

    folder: Path
    offsets: dict[Partition, int]


class Statistics(NamedTuple):
    """The index at one moment, from the index itself. `dead` is a share, `size_bytes` without Python's overhead."""

    kind: str
    dimension: int | None
    vectors: int
    without_vector: int
    rejected: int
    tombstones: int
    dead: float
    size_bytes: int
    watermark: bytes
    snapshot: str | None


class FaissStore:
    """Fills Store, Inspectable and Rebuildable for the table `config.faiss.table`; of others it notes the offsets.

    `generation` names a folder to fill instead of the live one. Raises ConfigError when the table says neither where
    vectors nor where texts are.
    """

    name = "faiss"

    def __init__(self, config: Config, *, generation: str | None = None, embedder: Embedder | None = None) -> None:
        self._config = config
        self._settings = config.faiss
        self._table = table_of(config)
        self._embedder = embedder or (None if config.table(*self._table).vector else embedder_from(config.embedder))
        self._source()  # a wrong configuration shows now, not at the first record
        self._home = Home(self._settings.path)
        self._wanted = generation
        self._generation: Generation | None = None
        self._content: Content | None = None
        self._training: Training | None = None
        self._durable: Durable | None = None
        self._shadow: FaissStore | None = None
        self._snapshotting: asyncio.Task[None] | None = None
        self._changes = 0  # records since the newest snapshot was taken
        self._tried = 0.0  # when a snapshot was last taken or tried; monotonic seconds
        self._pools: tuple[ThreadPoolExecutor, ThreadPoolExecutor] | None = None  # writer, background
        self._searchers = self._pool("search", self._settings.threads)

    # Store

    async def open(self) -> Offsets:
        """Loads the newest usable snapshot. Raises StoreError when another process has the index."""
        await self.close()
        self._pools = self._pool("write", 1), self._pool("background", 2)  # 2: a snapshot never waits for a training
        try:
            return await self._write(self._open)
        except OSError as error:
            await self.close()
            raise StoreError(
                f"the index in {self._home.path} cannot be opened: {error}",
                hint="set faiss.path to a folder this user may write",
            ) from error
        except BaseException:
            await self.close()
            raise

    def _open(self) -> Offsets:
        generation = Generation(self._home.path / (self._wanted or self._home.live()))
        generation.lock()
        self._generation = generation
        generation.tidy()
        content = Content(self._source(), self._settings.metric, "faiss.shadow" if self._wanted else "faiss")
        self._durable = self._load(generation, content)
        self._changes, self._tried = 0, time.monotonic()
        content.measure()
        writer, background = self._running()
        self._training = Training(self._settings, content, writer, background)
        self._content = content
        return {**content.offsets, **content.passed}

    def _load(self, generation: Generation, content: Content) -> Durable | None:
        for folder, manifest in generation.usable(self._kindred(content.source)):
            try:
                load(folder, manifest, content)
            except DecodeError as error:
                generation.set_aside(folder, error)
                continue
            metrics.INDEX_SNAPSHOT.labels(content.label).set(manifest.created)
            LOG.info("loaded a snapshot", snapshot=str(folder), count=manifest.vectors)
            return Durable(folder, dict(content.offsets))
        LOG.info("no snapshot to start from: everything is replayed", store=self.name)
        return None

    async def apply(self, batch: Batch) -> Applied:
        """Makes a batch searchable. Raises StoreError when a training failed."""
        return await self._write(lambda: self._apply(batch))

    def _apply(self, batch: Batch) -> Applied:
        content, training = self._opened(), self._training
        if (batch.schema, batch.table) != self._table:
            content.passed.update(batch.offsets)
            return Applied()
        applied = content.apply(batch.records) if batch.records else Applied()
        content.offsets.update(batch.offsets)
        self._changes += max(1, len(batch.records))
        if training is not None:
            training.consider()
        return applied

    async def truncate(self, batch: Batch, below: bytes) -> int:
        """Removes what is older than `below`, and refuses what comes later and is older. Returns rows removed."""
        return await self._write(lambda: self._truncate(batch, below))

    def _truncate(self, batch: Batch, below: bytes) -> int:
        content = self._opened()
        if (batch.schema, batch.table) != self._table:
            content.passed.update(batch.offsets)
            return 0
        removed = content.truncate(below)
        content.offsets.update(batch.offsets)
        self._changes += 1
        return removed

    async def flush(self, *, force: bool = False) -> Offsets:
        """Offsets of the newest snapshot; starts one when it is due, waits for it when forced.

        A snapshot that fails in the background is logged and tried again when the next is due; offsets stand still
        meanwhile. Raises ConnectError when a forced one cannot be written.
        """
        content = self._opened()
        await self._collect(wait=force)
        if force:
            if self._behind(content):
                await self._snapshot()
        elif self._snapshotting is None and self._due(content):
            self._snapshotting = asyncio.create_task(self._try_snapshot())
        return {**(self._durable.offsets if self._durable else {}), **content.passed}

    async def _collect(self, *, wait: bool) -> None:
        """The end of a snapshot in the background, with its error if it is one nobody expected."""
        if self._snapshotting is not None and (wait or self._snapshotting.done()):
            task, self._snapshotting = self._snapshotting, None
            await task

    def _behind(self, content: Content) -> bool:
        return self._changes > 0 or (self._durable is None and bool(content.offsets or content.passed))

    def _due(self, content: Content) -> bool:
        """Offsets of other tables alone do not make one due: nothing is lost when they are passed again."""
        waited = time.monotonic() - self._tried
        if self._durable is None and content.offsets and waited >= min(1.0, self._settings.snapshot_seconds):
            return True  # nothing is on the disk: soon, but not at every flush while the disk is full
        if not self._changes:
            return False
        return waited >= self._settings.snapshot_seconds or self._changes >= self._settings.snapshot_records

    async def _try_snapshot(self) -> None:
        try:
            await self._snapshot()
        except ConnectError as error:
            told = {"reason": error.message, "hint": error.hint}
            LOG.error("a snapshot failed; offsets stand still until one succeeds", **told)  # noqa: TRY400 - no traceback

    async def _snapshot(self) -> None:
        taken, changes = await self._write(self._take)
        _writer, background = self._running()
        try:
            await asyncio.get_running_loop().run_in_executor(background, self._keep, taken)
        except BaseException:
            self._changes += changes
            raise
        settings = self._settings
        await self._write(
            lambda: self._opened().prune(
                settings.tombstone_seconds, settings.tombstone_limit, covered=taken.manifest.created
            )
        )

    def _take(self) -> tuple[Taken, int]:
        content = self._opened()
        taken = take(content, self._kindred(content.source))
        changes, self._changes = self._changes, 0
        self._tried = time.monotonic()
        return taken, changes

    def _keep(self, taken: Taken) -> None:
        generation = self._owned()
        folder = generation.next_snapshot()
        started = time.monotonic()
        try:
            write(folder, taken)
            generation.prune(self._settings.keep_snapshots)
        except OSError as error:
            raise ConnectError(
                f"the snapshot {folder} cannot be written: {error.strerror or error}",
                hint="make room, or set faiss.path to a folder this user may write",
            ) from error
        manifest = taken.manifest
        self._durable = Durable(folder, {(topic, number): offset for topic, number, offset in manifest.offsets})
        metrics.INDEX_SNAPSHOT.labels(self._opened().label).set(manifest.created)
        seconds = round(time.monotonic() - started, 3)
        LOG.info("snapshot", snapshot=str(folder), count=manifest.vectors, seconds=seconds)

    async def check(self) -> None:
        """Raises StoreLost when a rebuild put another generation in our place; mends a folder that was removed."""
        self._opened()
        await self._collect(wait=False)
        live, _replaced = await asyncio.to_thread(self._home.current)
        generation = self._owned()
        if self._wanted is None and live is not None and live != generation.path.name:
            raise StoreLost(
                f"the index {generation.path.name} was replaced by {live}",
                hint="nothing to do: it is opened now, and the old one answers until then",
            )
        await asyncio.to_thread(self._mend, generation, live)

    def _mend(self, generation: Generation, live: str | None) -> None:
        if generation.lost():
            LOG.warning("the index's folder is gone or was replaced; a new snapshot follows", path=str(generation.path))
            generation.lock()
            self._durable = None
        elif self._durable is not None and not (self._durable.folder / MANIFEST).exists():
            LOG.warning("the newest snapshot is gone; a new one follows", snapshot=str(self._durable.folder))
            self._durable = None
        if self._wanted is None and live is None:
            self._home.point(generation.path.name, None)

    async def close(self) -> None:
        """Lets go of the folder and of all threads but those that search."""
        if self._snapshotting is not None:
            task, self._snapshotting = self._snapshotting, None
            await asyncio.gather(task, return_exceptions=True)
        if self._pools is not None:
            (writer, background), self._pools = self._pools, None
            await asyncio.to_thread(background.shutdown)
            await asyncio.to_thread(writer.shutdown)
        if self._generation is not None:
            self._generation.unlock()
            self._generation = None

    # Inspectable

    async def count(self, schema: str, table: str) -> int:
        """Vectors really in the index."""
        content = self._readable()
        return content.index.size if content.index is not None and (schema, table) == self._table else 0

    async def versions(self, schema: str, table: str, keys: Sequence[bytes]) -> list[Version | None]:
        """A rejected record counts as unknown: nothing is held of it."""
        if (schema, table) != self._table:
            return [None] * len(keys)
        return await self._read(lambda content: content.versions(keys))

    async def scan(self, schema: str, table: str) -> AsyncIterator[tuple[bytes, bytes]]:
        """Live records, those without a vector too; rejected ones are not there."""
        if (schema, table) == self._table:
            for held in await self._read(lambda content: content.held()):
                yield held

    async def statistics(self) -> Statistics:
        """For people and for the gateway."""
        return await self._read(self._statistics)

    def _statistics(self, content: Content) -> Statistics:
        with content.gate.reading():
            counts, index, ledger = content.ledger.counts(), content.index, content.ledger
            size, dead = (index.size, index.dead) if index is not None else (0, 0)
            columns = (ledger.positions, ledger.digests, ledger.states, ledger.stamps, ledger.keys, ledger.vectors)
        return Statistics(
            kind=index.kind if index is not None else "empty",
            dimension=index.dimension if index is not None else content.source.dimension,
            vectors=size,
            without_vector=counts[State.BARE],
            rejected=counts[State.REJECTED],
            tombstones=counts[State.DELETED],
            dead=dead / (size + dead) if dead else 0.0,
            size_bytes=4 * size * (index.dimension if index is not None else 0) + sum(c.nbytes for c in columns),
            watermark=content.watermark,
            snapshot=self._durable.folder.name if self._durable else None,
        )

    async def vector_of(self, key: bytes) -> Vectors | None:
        """The vector of a key as the index keeps it (length 1 under cosine), shape (d,); None without one."""
        return await self._read(lambda content: content.vector_of(key))

    # search

    async def search(self, vectors: Vectors, k: int) -> list[list[Hit]]:
        """The k best of each query, shape (n, d), best first. Raises StoreError for a query that cannot be compared."""
        return await self._read(lambda content: content.search(vectors, k, self._settings.nprobe))

    async def search_text(self, texts: Sequence[str], k: int) -> list[list[Hit]]:
        """As `search`, embedded by what embeds the table. Raises StoreError when its vectors come from a column."""
        embedder = self._embedder
        if embedder is None:
            raise StoreError(
                f"the vectors of {self._settings.table} come from a column, so texts cannot be embedded here",
                hint="send a vector made by what fills that column",
            )
        return await self._read(lambda content: content.search(embedder.embed(texts), k, self._settings.nprobe))

    # Rebuildable

    async def shadow(self) -> FaissStore:
        """An empty store in a generation of its own."""
        name = await asyncio.to_thread(self._home.fresh)
        self._shadow = FaissStore(self._config, generation=name, embedder=self._embedder)
        return self._shadow

    async def swap(self) -> None:
        """Makes the shadow's snapshot durable, closes it and moves the pointer. Raises StoreError without a shadow."""
        shadow, self._shadow = self._shadow, None
        if shadow is None or shadow._wanted is None:
            raise StoreError("there is no shadow to swap in", hint="rebuild the index first")
        if shadow._generation is not None:
            await shadow.flush(force=True)
            await shadow.close()
        await asyncio.to_thread(self._exchange, shadow._wanted)

    def _exchange(self, fresh: str) -> None:
        live, _replaced = self._home.current()
        self._home.point(fresh, live)
        self._home.clear()

    async def rollback(self) -> None:
        """Moves the pointer back to the generation that was live before. Raises StoreError when there is none."""
        live, replaced = await asyncio.to_thread(self._home.current)
        if replaced is None or not (self._home.path / replaced).is_dir():
            raise StoreError("no index was kept that could be put back", hint="only the last swap can be undone, once")
        await asyncio.to_thread(self._home.point, replaced, None)
        LOG.info("put back", generation=replaced, instead_of=live)

    # threads

    async def settle(self) -> None:
        """Waits for training and snapshots that run in the background. Raises what they raised."""
        await self._collect(wait=True)
        while self._training is not None and self._training.running is not None:
            await asyncio.wait([asyncio.wrap_future(self._training.running)])
            await self._write(self._training.consider)

    def _pool(self, duty: str, threads: int) -> ThreadPoolExecutor:
        omp = self._settings.threads  # OpenMP keeps that number by calling thread
        return ThreadPoolExecutor(threads, f"faiss-{duty}", initializer=faiss.omp_set_num_threads, initargs=(omp,))

    async def _write(self, work: Callable[[], T]) -> T:
        writer, _background = self._running()
        return await asyncio.get_running_loop().run_in_executor(writer, work)

    async def _read(self, work: Callable[[Content], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._searchers, work, self._readable())

    def _running(self) -> tuple[ThreadPoolExecutor, ThreadPoolExecutor]:
        if self._pools is None:
            raise StoreError("the index is not open", hint="open it first")
        return self._pools

    def _readable(self) -> Content:
        if self._content is None:
            raise StoreError("the index is not loaded yet", hint="try again in a moment")
        return self._content

    def _opened(self) -> Content:
        self._running()
        return self._readable()

    def _owned(self) -> Generation:
        if self._generation is None:
            raise StoreError("the index is not open", hint="open it first")
        return self._generation

    # configuration

    def _source(self) -> Source:
        settings, name = self._config.table(*self._table), self._settings.table
        if settings.vector:
            return VectorColumn(settings.vector, self._settings.metric, self._settings.dimension)
        if not settings.text or self._embedder is None:
            raise ConfigError(
                f"tables.{name!r} names neither a vector nor a text column, so there is nothing to index",
                hint=f'set vector = "<column>" or text = "<column>" under [tables."{name}"]',
            )
        wanted = self._settings.dimension
        if wanted not in (None, self._embedder.dimension):
            raise ConfigError(
                f"faiss.dimension = {wanted}, but the embedder gives {self._embedder.dimension}",
                hint="leave faiss.dimension out, or set embedder.dimension to the same",
            )
        return TextColumn(settings.text, self._settings.metric, self._embedder)

    def _kindred(self, source: Source) -> Kindred:
        settings = self._settings
        return Kindred(settings.table, source.label, source.pin, settings.metric, source.dimension)


def table_of(config: Config) -> tuple[str, str]:
    """`(schema, table)` of the index. Raises ConfigError."""
    schema, dot, table = config.faiss.table.partition(".")
    if not (schema and dot and table):
        raise ConfigError(f"faiss.table = {config.faiss.table!r} is not schema.table", hint='e.g. "public.memories"')
    return schema, table
