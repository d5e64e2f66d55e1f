"""The model's consumer of one store: real grouping, real store rules, real freshness; crashes and replays at any point.

What it asserts after every batch: each key stands at the newest position that was ever applied of it, nothing below a
marker is held; and whenever a heartbeat is reached, every change up to it is in the store.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

import msgspec
from aiokafka import ConsumerRecord, TopicPartition

from consumers.batches import Foreign, Marker, work
from consumers.faiss.columns import VectorColumn
from consumers.faiss.content import Content
from consumers.faiss.flat import FlatIndex
from consumers.faiss.image import pack, unpack
from consumers.freshness import Freshness
from consumers.store import Batch, Partition, Version
from consumers.topics import TableTopics
from tests.memory_store import Contents, Memory, MemoryStore
from tests.property.delivery.reading import CONFIG, Reading
from tests.property.delivery.source import KEYS, NAMES, PREFIX, TOPICS, Name, Rows, key_bytes
from tests.property.delivery.topics import PLACES, Place, Topics

T = TypeVar("T")
LIMIT = 7  # records a batch
TABLE_TOPICS = TableTopics(PREFIX)
ALL_KEYS = [key_bytes(key) for key in range(KEYS)]
_row = msgspec.json.Decoder(dict[str, Any]).decode


class Kept(Protocol):
    """A store as the model sees it."""

    names: tuple[Name, ...]

    def offsets(self) -> dict[Partition, int]:
        """What is durable."""

    def apply(self, batch: Batch) -> None:
        """A batch."""

    def truncate(self, batch: Batch, below: bytes) -> None:
        """A marker."""

    def flush(self) -> None:
        """Makes everything durable."""

    def crash(self) -> None:
        """Back to what is durable."""

    def wipe(self) -> None:
        """Empty, as a rebuild begins."""

    def prune(self) -> bool:
        """Forgets tombstones it need not keep."""

    def versions(self, name: Name, keys: list[bytes]) -> list[Version | None]:
        """What is held."""

    def rows(self, name: Name) -> Rows:
        """Key → number of every row."""


def now(step: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits."""
    try:
        step.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    raise AssertionError("the store waits")


class Server:
    """A store whose data outlives us, and whose offsets are durable later: after a crash everything comes again."""

    names: tuple[Name, ...] = NAMES

    def __init__(self) -> None:
        self._memory = Memory(lazy=True)
        self.crash()

    def crash(self) -> None:
        self._store = MemoryStore(self._memory)
        now(self._store.open())

    def wipe(self) -> None:
        self._memory.live = Contents()
        self.crash()

    def offsets(self) -> dict[Partition, int]:
        return dict(self._memory.live.offsets)

    def apply(self, batch: Batch) -> None:
        now(self._store.apply(batch))

    def truncate(self, batch: Batch, below: bytes) -> None:
        now(self._store.truncate(batch, below))

    def flush(self) -> None:
        now(self._store.flush(force=True))

    def prune(self) -> bool:
        return False

    def versions(self, name: Name, keys: list[bytes]) -> list[Version | None]:
        return now(self._store.versions(*name, keys))

    def rows(self, name: Name) -> Rows:
        held = self._memory.live.rows.get(name, {})
        return {(row := _row(value))["id"]: row["v"][0] for _position, _vector, value in held.values() if value}


class Index:
    """The index's content in memory, and the image of its last snapshot; it holds one table and passes the others."""

    names: tuple[Name, ...] = NAMES[:1]

    def __init__(self) -> None:
        self.wipe()

    def wipe(self) -> None:
        self._content = Content(VectorColumn("v", "l2", 2), "l2", "model")
        self.flush()

    def flush(self) -> None:
        content = self._content
        vectors = None if content.index is None else content.index.dump()
        self._image = b"".join(pack(content.ledger)), vectors, {**content.offsets}, {**content.passed}

    def crash(self) -> None:
        image, vectors, offsets, passed = self._image
        content = self._content = Content(VectorColumn("v", "l2", 2), "l2", "model")
        content.ledger = unpack(image)
        content.offsets, content.passed = dict(offsets), dict(passed)
        if vectors is not None:
            content.index = FlatIndex(2, "l2")
            content.index.reserve(len(vectors[0]))
            content.index.put(*vectors)

    def offsets(self) -> dict[Partition, int]:
        return {**self._image[2], **self._image[3]}

    def apply(self, batch: Batch) -> None:
        if (batch.schema, batch.table) not in self.names:
            self._content.passed.update(batch.offsets)
            return
        applied = self._content.apply(batch.records)
        assert not applied.rejected
        self._content.offsets.update(batch.offsets)

    def truncate(self, batch: Batch, below: bytes) -> None:
        if (batch.schema, batch.table) not in self.names:
            self._content.passed.update(batch.offsets)
            return
        self._content.truncate(below)
        self._content.offsets.update(batch.offsets)

    def prune(self) -> bool:
        pruned = self._content.prune(0, 0, float("inf")) > 0
        self.flush()
        return pruned

    def versions(self, name: Name, keys: list[bytes]) -> list[Version | None]:
        return self._content.versions(keys)

    def rows(self, name: Name) -> Rows:
        found: Rows = {}
        for key, _position in self._content.held():
            vector = self._content.vector_of(key)
            assert vector is not None
            found[_row(key)["id"]] = int(vector[0])
        return found


class Consumer:
    """One store's consumer; `horizon` is before what no replay begins: tombstones of it are forgotten."""

    def __init__(self, store: Kept, topics: Topics, reading: Reading) -> None:
        self.store, self._topics, self._reading = store, topics, reading
        self.horizon: dict[Place, int] = dict.fromkeys(PLACES, 0)
        self._furthest: dict[Place, int] = dict(self.horizon)
        self._newest: dict[tuple[Name, bytes], bytes] = {}
        self._floors: dict[Name, bytes] = dict.fromkeys(NAMES, b"")
        self._held: dict[Place, int] = dict(self.horizon)  # up to where records were given to the store
        self._durable = dict(self._newest), dict(self._floors), dict(self._held)
        self.applied = 0
        self.restart()

    def restart(self) -> None:
        """A new process begins where its store says."""
        offsets = self.store.offsets()
        self.at: dict[Place, int] = {place: offsets.get(place, 0) for place in PLACES}
        assert all(at <= self._held[place] for place, at in self.at.items()), "offsets are ahead of what is applied"
        self.freshness = Freshness(CONFIG, "model")
        self._heard = 0

    def crash(self) -> None:
        """SIGKILL at any time: what was not durable comes again."""
        self.store.crash()
        if isinstance(self.store, Index):
            newest, floors, held = self._durable
            self._newest, self._floors, self._held = dict(newest), dict(floors), dict(held)
        self.restart()

    def flush(self) -> None:
        """A snapshot, or offsets written."""
        self.store.flush()
        self._durable = dict(self._newest), dict(self._floors), dict(self._held)

    def prune(self) -> bool:
        """Tombstones go; what is replayed from now on begins behind them."""
        self.flush()  # only what a durable snapshot has is forgotten
        if self._topics.repeats or self.at != self._furthest or not self.store.prune():
            return False  # rows may still come again behind their deletes
        self.horizon = dict(self.at)
        return True

    def rebuild(self) -> None:
        """A new store, filled from the beginning."""
        self.store.wipe()
        self.horizon = dict.fromkeys(PLACES, 0)
        self._newest, self._floors, self._held = {}, dict.fromkeys(NAMES, b""), dict(self.horizon)
        self.flush()
        self.restart()

    def rewind(self, place: Place, share: float) -> bool:
        """A replay from an earlier offset."""
        low, high = self.horizon[place], self.at[place]
        self.at[place] = low + int((high - low) * share)
        return self.at[place] < high

    def hear(self, number: int) -> bool:
        """The next heartbeats; a slow listener hears them late."""
        found = self._reading.heartbeats[self._heard : self._heard + number]
        for value in found:
            key = CONFIG.source_name.encode()
            self.freshness._hear(ConsumerRecord("", 0, 0, 0, 0, key, value, None, 0, 0, ()))
        self._heard += len(found)
        return bool(found)

    def deliver(self, places: list[Place], most: int, *, die_after: int | None = None) -> bool:
        """A poll of some partitions, in that order; `die_after` so many batches the process is killed."""
        polled, ends = {}, {}
        for place in places:
            records, end = self._topics.logs[place].read(self.at[place], most)
            partition = TopicPartition(*place)
            if records:
                polled[partition], ends[partition] = records, end
            self.at[place] = end
            self._furthest[place] = max(end, self._furthest[place])
        if not polled:
            self._observe(b"")
            return False
        todo = work(TABLE_TOPICS, polled, ends, LIMIT)
        for number, step in enumerate(todo.steps):
            if number == die_after:
                self.crash()
                return True
            assert not isinstance(step, Foreign)
            self._perform(step)
        self._observe(todo.newest)
        return True

    def _perform(self, step: Batch | Marker) -> None:
        batch = step.batch if isinstance(step, Marker) else step
        name = batch.schema, batch.table
        self.applied += len(batch.records)
        self._held.update({place: max(end, self._held[place]) for place, end in batch.offsets.items()})
        if isinstance(step, Marker):
            self.store.truncate(batch, step.below)
            self._floors[name] = max(self._floors[name], step.below)
            keys = ALL_KEYS
        else:
            self.store.apply(batch)
            for record in batch.records:
                newest = self._newest.get((name, record.key), b"")
                self._newest[name, record.key] = max(newest, record.position)
            keys = list({record.key: None for record in batch.records})
        if name in self.store.names:
            self._check(name, keys)

    def _check(self, name: Name, keys: list[bytes]) -> None:
        floor = self._floors[name]
        for key, version in zip(keys, self.store.versions(name, keys), strict=True):
            newest = self._newest.get((name, key), b"")
            if version is None:
                gone = newest < floor or (isinstance(self.store, Index) and not self._live(name, key))
                assert gone, "a store forgot a row"
            else:
                assert version.position == newest, "a version went back, or an older record won"
                assert version.deleted or version.position >= floor, "what was truncated or swept came back"

    def _live(self, name: Name, key: bytes) -> bool:
        """Whether the newest record applied of a key is a row, as the source tells; a pruned tombstone is none."""
        change, _later = self._reading.source.last(name, _row(key)["id"], self._newest.get((name, key), b""))
        return change is not None and change.number is not None

    def _observe(self, newest: bytes) -> None:
        before = self.freshness.position
        self.freshness.applied(newest)
        self.freshness.reached(self.at, TABLE_TOPICS.__contains__, set(TOPICS.values()))
        if self.freshness.position != before:
            assert self.freshness.position > before, "freshness went back"
            for name in self.store.names:
                self._claimed(name, self.freshness.position)

    def _claimed(self, name: Name, until: bytes) -> None:
        """The store says that everything up to here is in it: so it has to be."""
        if not b"" < self._reading.complete.get(name, b"") <= until:
            return  # the table is still being copied
        for key, version in enumerate(self.store.versions(name, ALL_KEYS)):
            change, goes = self._reading.source.last(name, key, until)
            if change is None:
                continue
            if version is None:
                right = change.number is None or goes
            else:
                gone = change.number is None and not version.deleted
                right = version.position > change.position or (version.position == change.position and not gone)
            assert right, "freshness claims a change that is not in the store"
