"""The FAISS store: what the consumer runtime, the gateway and a rebuild see of the index.

Threads. All changes run in one thread, in order; searches in a pool of their own; snapshots and training in the
background. The event loop never waits for any of them. Durability: memory is ahead of the disk; `flush` returns
the offsets of the newest snapshot on the disk, so that a crash replays from there. After `close` searches still answer
from what was in memory, until `open` has loaded the next: that is what a search sees while a rebuilt index comes in.
"""

from __future__ import annotations

import asyncio
import errno
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import faiss

from cdc import log
from cdc.config import Config
from cdc.errors import ConfigError, ConnectError, StoreError, StoreLost
from consumers.embedder import Embedder, embedder_from
from consumers.faiss.agreement import agree, lower
from consumers.faiss.columns import Source, TextColumn, VectorColumn
from consumers.faiss.content import Content
from consumers.faiss.folder import Generation, Home
from consumers.faiss.keeper import Keeper
from consumers.faiss.precedence import SWITCH_SECONDS
from consumers.faiss.reading import Reading
from consumers.faiss.snapshot import Kindred
from consumers.faiss.training import Training
from consumers.store import Applied, Batch, Offsets, Partition

LOG = log.get(__name__)
T = TypeVar("T")
FULL = (errno.ENOSPC, errno.EDQUOT)  # a disk, a quota: it passes


class Opened(NamedTuple):
    """What is there between `open` and `close`."""

    content: Content
    keeper: Keeper
    training: Training


class FaissStore(Reading):
    """Fills Store, Inspectable and Rebuildable for the table `config.faiss.table`; of others it notes the offsets.

    `generation` names a folder to fill instead of the live one. Raises ConfigError when the table says neither where
    vectors nor where texts are.
    """

    name = "faiss"

    def __init__(self, config: Config, *, generation: str | None = None, embedder: Embedder | None = None) -> None:
        settings, table = config.faiss, table_of(config)
        if embedder is None and not config.table(*table).vector:
            embedder = embedder_from(config.embedder)
        super().__init__(table, _pool("search", settings.threads, 1), settings.nprobe, embedder)  # a thread a search
        self._config = config
        self._settings = settings
        self._source()  # a wrong configuration shows now, not at the first record
        self._home = Home(settings.path)
        self._wanted = generation
        self._opened: Opened | None = None
        self._generation: Generation | None = None
        self._pools: tuple[ThreadPoolExecutor, ThreadPoolExecutor] | None = None  # writer, background
        self._shadow: FaissStore | None = None

    # Store

    async def open(self) -> Offsets:
        """Loads the newest usable snapshot. Raises StoreError when another process has the index, ConnectError while
        the disk is full."""
        await self.close()
        sys.setswitchinterval(SWITCH_SECONDS)  # of the whole process: a search goes through three of its threads
        threads = self._settings.threads
        pools = self._pools = _pool("write", 1, threads), _pool("background", 2, threads)  # a snapshot and a training
        try:
            opened = await self._write(lambda: self._open(pools))
        except BaseException as error:
            await self.close()
            if isinstance(error, OSError):
                raise self._unwritable(error) from error
            raise
        self._opened, self.content = opened, opened.content
        return {**opened.content.offsets, **opened.content.passed}

    def _open(self, pools: tuple[ThreadPoolExecutor, ThreadPoolExecutor]) -> Opened:
        generation = Generation(self._home.path / (self._wanted or self._home.live()))
        self._generation = generation
        generation.lock()
        generation.tidy()
        source = self._source()
        content = Content(source, self._settings.metric, "faiss.shadow" if self._wanted else "faiss")
        keeper = Keeper(self._settings, generation, content, lambda: self._kindred(source), pools)
        keeper.load()
        content.measure()
        return Opened(content, keeper, Training(self._settings, content, *pools))

    @property
    def logs(self) -> Mapping[Partition, str]:
        """As of the snapshot, or of `begin` since."""
        return self._running().content.logs

    async def begin(self, logs: Mapping[Partition, str], void: Collection[Partition]) -> None:
        """Durable with the next snapshot: a crash before it finds the old logs with the old offsets."""
        opened = self._running()
        await self._write(lambda: self._begin(opened, logs, void))

    def _begin(self, opened: Opened, logs: Mapping[Partition, str], void: Collection[Partition]) -> None:
        content = opened.content
        content.logs.update(logs)
        for partition in void:
            content.offsets.pop(partition, None)
            content.passed.pop(partition, None)
        opened.keeper.forget(void)

    async def apply(self, batch: Batch) -> Applied:
        """Makes a batch searchable. Raises StoreError when a training failed."""
        opened = self._running()
        return await self._write(lambda: self._apply(opened, batch))

    def _apply(self, opened: Opened, batch: Batch) -> Applied:
        content = opened.content
        if self._passes(content, batch):
            return Applied()
        applied = content.apply(batch.records) if batch.records else Applied()
        if not applied.rejected:
            content.offsets.update(batch.offsets)
        opened.keeper.note(len(batch.records))
        self._consider(opened)
        return applied

    async def truncate(self, batch: Batch, below: bytes) -> int:
        """Removes what is older than `below`, and refuses what comes later and is older. Returns rows removed."""
        opened = self._running()
        return await self._write(lambda: self._truncate(opened, batch, below))

    def _truncate(self, opened: Opened, batch: Batch, below: bytes) -> int:
        content = opened.content
        if self._passes(content, batch):
            return 0
        removed = content.truncate(below)
        content.offsets.update(batch.offsets)
        opened.keeper.note(1)
        self._consider(opened)
        return removed

    def _consider(self, opened: Opened) -> None:
        """Nobody searches a shadow: it is trained once, when it is made durable, of all that it holds."""
        if self._wanted is None:
            opened.training.consider()

    def _passes(self, content: Content, batch: Batch) -> bool:
        """A table that is not ours: only its offsets are noted."""
        if (batch.schema, batch.table) == self._table:
            return False
        content.passed.update(batch.offsets)
        return True

    async def flush(self, *, force: bool = False) -> Offsets:
        """Offsets of the newest snapshot; starts one when it is due, waits for it when forced.

        Raises ConnectError when a forced one cannot be written, StoreError when a shadow's training failed.
        """
        keeper, training = self._running().keeper, self._running().training
        if force and self._wanted is not None:
            await self._write(training.consider)
            await self.settle()
        await keeper.flush(force=force)
        return keeper.offsets

    async def check(self) -> None:
        """Raises StoreLost when a rebuild put another generation in our place; mends a folder that was removed."""
        keeper = self._running().keeper
        await keeper.collect(wait=False)
        try:
            await asyncio.to_thread(self._look, keeper)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> StoreError | ConnectError:
        where = f"the index in {self._home.path} cannot be opened: {error.strerror or error}"
        if error.errno in FULL:
            return ConnectError(where, hint="make room: it is tried again until it works")
        return StoreError(where, hint="set faiss.path to a folder this user may write")

    def _look(self, keeper: Keeper) -> None:
        if self._wanted is None:
            ours = keeper.generation.path.name
            live = self._home.sound()
            if live is None:
                self._home.point(ours, None)
            elif live != ours:
                raise StoreLost(
                    f"the index {ours} was replaced by {live}",
                    hint="nothing to do: it is opened now, and the old one answers until then",
                )
        keeper.look()

    async def close(self) -> None:
        """Lets go of the folder and of all threads but those that search."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.keeper.close()
        if self._pools is not None:
            (writer, background), self._pools = self._pools, None
            await asyncio.to_thread(background.shutdown)  # first: a training that ends hands over to the writer
            await asyncio.to_thread(writer.shutdown)
        if self._generation is not None:
            self._generation.unlock()
            self._generation = None

    async def agree(self) -> int:
        """Has ledger and index agree again; see consumers.faiss.agreement. Returns how many ids it touched."""
        content = self._running().content
        return await self._write(lambda: agree(content))

    async def lower(self, schema: str, table: str, keys: Sequence[bytes], reached: bytes) -> int:
        """No row of these keys refuses the next record because of a position above `reached`; see `agree`."""
        content = self._running().content
        return await self._write(lambda: lower(content, keys, reached)) if (schema, table) == self._table else 0

    # Rebuildable

    async def shadow(self) -> FaissStore:
        """An empty store in a generation of its own."""
        name = await asyncio.to_thread(self._home.fresh)
        self._shadow = FaissStore(self._config, generation=name, embedder=self._embedder)
        return self._shadow

    async def swap(self) -> None:
        """Makes the shadow durable, closes it and moves the pointer. Raises StoreError without a shadow."""
        shadow, self._shadow = self._shadow, None
        if shadow is None or shadow._wanted is None:
            raise StoreError("there is no shadow to swap in", hint="rebuild the index first")
        if shadow._opened is not None:
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
        LOG.info("an index was put back", generation=replaced, instead_of=live)

    async def settle(self) -> None:
        """Waits for training and snapshots that run in the background. Raises what they raised."""
        opened = self._running()
        await opened.keeper.collect(wait=True)
        while opened.training.running is not None:
            await asyncio.wait([asyncio.wrap_future(opened.training.running)])
            await self._write(opened.training.consider)

    def _running(self) -> Opened:
        if self._opened is None:
            raise StoreError("the index is not open", hint="open it first")
        return self._opened

    async def _write(self, work: Callable[[], T]) -> T:
        if self._pools is None:
            raise StoreError("the index is not open", hint="open it first")
        return await asyncio.get_running_loop().run_in_executor(self._pools[0], work)

    # configuration

    def _source(self) -> Source:
        settings, name = self._config.table(*self._table), self._settings.table
        if settings.vector:
            filters = self._config.filters()
            return VectorColumn(settings.vector, self._settings.metric, self._settings.dimension, filters)
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
        return TextColumn(settings.text, self._settings.metric, self._embedder, self._config.filters())

    def _kindred(self, source: Source) -> Kindred:
        settings = self._settings
        metric, filters = settings.metric, source.reader.filters
        return Kindred(settings.table, source.label, source.pin, metric, source.dimension, filters)


def table_of(config: Config) -> tuple[str, str]:
    """`(schema, table)` of the index. Raises ConfigError."""
    schema, dot, table = config.faiss.table.partition(".")
    if not (schema and dot and table):
        raise ConfigError(f"faiss.table = {config.faiss.table!r} is not schema.table", hint='e.g. "public.memories"')
    return schema, table


def _pool(duty: str, size: int, threads: int) -> ThreadPoolExecutor:
    """`threads` is FAISS' own number, which OpenMP keeps by calling thread."""
    return ThreadPoolExecutor(size, f"faiss-{duty}", initializer=faiss.omp_set_num_threads, initargs=(threads,))
