"""What every store fills: the seam between the consumer runtime and Redis, FAISS, and what comes later.

Ordering: within a partition batches arrive in offset order; between partitions there is no order. Duplicates: any
record may come again, after a restart or a rebuild; a store applies a record only when its position is newer than
the one it holds, deletes included. Durability: `apply` makes a batch visible; only what `flush` returns may be
committed. Shutdown: `close` may come at any time after `open`, also after an error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

Partition = tuple[str, int]  # topic, partition
Offsets = Mapping[Partition, int]  # the next offset to apply


class Record(NamedTuple):
    """One record of a table topic. `value` None is a tombstone; `position` is the 32-digit wire form."""

    key: bytes
    value: bytes | None
    position: bytes
    vector: bytes
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one table, in offset order a partition. `offsets` are reached once it is applied."""

    schema: str
    table: str
    topic: str
    records: Sequence[Record]
    offsets: Offsets


class Rejected(NamedTuple):
    """A record the store cannot hold; it goes to the dead-letter topic. `reason` is a metric label."""

    record: Record
    reason: str
    message: str


@dataclass(slots=True)
class Applied:
    """What `apply` did: counts by op (`upsert`, `delete`), stale (already newer), and what it rejected."""

    upserts: int = 0
    deletes: int = 0
    stale: int = 0
    rejected: list[Rejected] = field(default_factory=list)


class Version(NamedTuple):
    """A record's version in a store. `deleted`: a tombstone is held."""

    position: bytes
    vector: bytes
    deleted: bool = False


class Store(Protocol):
    """Seven steps of a store's life; see the module's text for order, duplicates, durability and shutdown."""

    name: str

    async def open(self) -> Offsets:
        """Connects; returns the durable offsets, {} when the store is empty or new. Raises StoreError, ConnectError."""

    @property
    def logs(self) -> Mapping[Partition, str]:
        """Which log (Kafka's id of the topic) the offset of each partition belongs to, as `begin` noted it."""

    async def begin(self, logs: Mapping[Partition, str], void: Collection[Partition]) -> None:
        """Notes the logs, and forgets the offsets of `void`, whose logs are read from their beginning: in one step.

        Raises StoreLost, ConnectError."""

    async def apply(self, batch: Batch) -> Applied:
        """Makes a batch visible. Raises StoreLost when its state is gone, ConnectError when it is unreachable.

        With records rejected the offsets stay: the batch comes again without them once the dead letters are written."""

    async def truncate(self, batch: Batch, below: bytes) -> int:
        """Removes every row of the table with position < below; `batch` carries the marker. Returns how many."""

    async def flush(self, *, force: bool = False) -> Offsets:
        """The offsets that are durable now; a store with costly flushes decides itself when, unless forced."""

    async def check(self) -> None:
        """Looks whether the store still holds what it was given; raises StoreLost or ConnectError."""

    async def close(self) -> None:
        """Releases everything; never raises for a store that is gone."""


class Inspectable(Protocol):
    """Reading a store for counts, verify and `cdc versions`."""

    async def count(self, schema: str, table: str) -> int:
        """Live records of the table, from the store itself."""

    async def versions(self, schema: str, table: str, keys: Sequence[bytes]) -> list[Version | None]:
        """The version held of each key (the topic's key bytes), None when unknown."""

    def scan(self, schema: str, table: str) -> AsyncIterator[tuple[bytes, bytes]]:
        """`(key bytes, position)` of every live record, in no order."""


class Rebuildable(Protocol):
    """A store that can be filled anew beside the live one."""

    async def shadow(self) -> Store:
        """An empty, unopened store of the same kind beside the live one."""

    async def swap(self) -> None:
        """Makes the shadow live atomically, keeps the old one for `rollback`."""

    async def rollback(self) -> None:
        """Puts the store back that `swap` replaced; raises StoreError when there is none."""
