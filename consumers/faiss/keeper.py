"""Makes what is in memory durable: when a snapshot is due, writing it in the background, and what may be committed.

A copy is taken in the writer's thread between two batches, so that its offsets are exactly those of what it holds;
searches go on meanwhile, and have precedence. A snapshot that fails in the background is logged and tried again when
the next is due, and the offsets stand still until one succeeds: nothing is lost, and the age of the newest is a metric
with an alert.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

from cdc import log, metrics
from cdc.config import Faiss
from cdc.errors import ConnectError, DecodeError
from consumers.faiss.content import Content
from consumers.faiss.folder import Generation
from consumers.faiss.snapshot import MANIFEST, Kindred, Manifest, Taken, load, take, write
from consumers.store import Partition

LOG = log.get(__name__)
GROWTH = 5  # a snapshot when a fifth of the index has changed, however large it is
SPACING = 4  # times as long as the last one took the next one waits: a quarter of the time is spent writing at most
FIRST_SECONDS = 1.0  # while nothing is on the disk at all, a snapshot is tried that often


class Durable(NamedTuple):
    """The newest snapshot on the disk."""

    folder: Path
    offsets: dict[Partition, int]


class Keeper:
    """Snapshots of one content in one generation, whose lock is held. `kindred` says what its vectors are by now."""

    def __init__(
        self,
        settings: Faiss,
        generation: Generation,
        content: Content,
        kindred: Callable[[], Kindred],
        pools: tuple[Executor, Executor],
    ) -> None:
        self.generation = generation
        self._settings = settings
        self._content = content
        self._kindred = kindred
        self._writer, self._background = pools
        self._durable: Durable | None = None
        self._running: asyncio.Task[None] | None = None
        self._changes = 0  # records since the newest copy was taken
        self._tried = time.monotonic()
        self._took = 0.0  # seconds, the last one

    def load(self) -> None:
        """Fills the content from the newest snapshot that is intact and ours; leaves it empty without one."""
        for folder, manifest in self.generation.usable(self._kindred()):
            try:
                load(folder, manifest, self._content)
            except DecodeError as error:
                self.generation.set_aside(folder, error)
                continue
            self._is_durable(folder, manifest)
            LOG.info("loaded a snapshot", snapshot=str(folder), count=manifest.vectors)
            return
        LOG.info("no snapshot to start from: everything is replayed", path=str(self.generation.path))

    def note(self, records: int) -> None:
        """So many records, or a marker, changed something since."""
        self._changes += max(1, records)

    def forget(self, void: Collection[Partition]) -> None:
        """The logs of these partitions are no more: their offsets are durable nowhere."""
        if self._durable is not None:
            for partition in void:
                self._durable.offsets.pop(partition, None)
        self.note(1)

    @property
    def offsets(self) -> dict[Partition, int]:
        """What may be committed: of our table up to the newest snapshot; of others, nothing can be lost."""
        return {**(self._durable.offsets if self._durable else {}), **self._content.passed}

    async def flush(self, *, force: bool) -> None:
        """Starts a snapshot when one is due; waits for a fresh one when forced. Raises ConnectError when that fails."""
        await self.collect(wait=force)
        if force:
            if self._changes or (self._durable is None and (self._content.offsets or self._content.passed)):
                await self._snapshot()
        elif self._running is None and self._due():
            self._running = asyncio.create_task(self._try())

    async def collect(self, *, wait: bool) -> None:
        """The end of a snapshot in the background; raises what nobody expected."""
        if self._running is not None and (wait or self._running.done()):
            task, self._running = self._running, None
            await task

    def _due(self) -> bool:
        """Offsets of other tables alone make none due: they are passed over again at no cost."""
        settings, waited = self._settings, time.monotonic() - self._tried
        if waited < SPACING * self._took:
            return False
        if self._durable is None and self._content.offsets and waited >= min(FIRST_SECONDS, settings.snapshot_seconds):
            return True
        # Writing the whole index after every so many records would cost the square of its size in a replay.
        size = self._content.index.size if self._content.index is not None else 0
        many = max(settings.snapshot_records, size // GROWTH)
        return self._changes > 0 and (waited >= settings.snapshot_seconds or self._changes >= many)

    async def _try(self) -> None:
        try:
            await self._snapshot()
        except ConnectError as error:
            told = {"reason": error.message, "hint": error.hint}
            LOG.error("a snapshot failed; offsets stand still until one succeeds", **told)  # noqa: TRY400 - no traceback

    async def _snapshot(self) -> None:
        loop = asyncio.get_running_loop()
        taken, changes = await loop.run_in_executor(self._writer, self._take)
        try:
            await loop.run_in_executor(self._background, self._keep, taken)
        except BaseException:
            self._changes += changes
            raise
        finally:
            self._took = time.monotonic() - self._tried
        await loop.run_in_executor(self._writer, self._prune, taken.manifest.created)

    def _take(self) -> tuple[Taken, int]:
        taken = take(self._content, self._kindred(), self._content.precedence.give_way)
        changes, self._changes = self._changes, 0
        self._tried = time.monotonic()
        return taken, changes

    def _keep(self, taken: Taken) -> None:
        folder = self.generation.next_snapshot()
        try:
            write(folder, taken, self._content.precedence.give_way)
            self.generation.prune(self._settings.keep_snapshots)
        except OSError as error:
            raise ConnectError(
                f"the snapshot {folder} cannot be written: {error.strerror or error}",
                hint="make room, or set faiss.path to a folder this user may write",
            ) from error
        self._is_durable(folder, taken.manifest)
        seconds = round(time.monotonic() - self._tried, 3)
        LOG.info("wrote a snapshot", snapshot=str(folder), count=taken.manifest.vectors, seconds=seconds)

    def _is_durable(self, folder: Path, manifest: Manifest) -> None:
        self._durable = Durable(folder, {(topic, number): offset for topic, number, offset in manifest.offsets})
        metrics.INDEX_SNAPSHOT.labels(self._content.label).set(manifest.created)

    def _prune(self, created: float) -> None:
        self._content.prune(self._settings.tombstone_seconds, self._settings.tombstone_limit, covered=created)

    def look(self) -> None:
        """Mends a folder that is gone or another one, and asks for a new snapshot then. Raises StoreError."""
        if self.generation.lost():
            LOG.warning(
                "the index's folder is gone or was replaced; it is written anew", path=str(self.generation.path)
            )
            self.generation.lock()
            self._durable = None
        elif self._durable is not None and not (self._durable.folder / MANIFEST).exists():
            LOG.warning("the newest snapshot is gone; a new one follows", snapshot=str(self._durable.folder))
            self._durable = None

    async def close(self) -> None:
        """Waits for a running snapshot."""
        if self._running is not None:
            task, self._running = self._running, None
            await asyncio.gather(task, return_exceptions=True)
