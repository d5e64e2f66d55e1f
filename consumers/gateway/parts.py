"""What the gateway speaks for: the source, the stores, the index, Kafka. The command that starts it puts them together.

Whatever cannot be asked raises a CdcError that says why; no part answers 0 or an empty list in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel

from cdc.wishes import Wishes
from consumers.conditions import Kind
from consumers.gateway.asked import IndexQuery
from consumers.gateway.models import IndexHits
from consumers.gateway.timeline import Timeline
from consumers.store import Offsets

Row = Mapping[str, str]  # column → text as in Redis; a NULL's column is absent, and a vector's


class Counts(BaseModel):
    """One table in one place. Embeddings are absent where that place keeps none."""

    records: int
    with_embeddings: int | None = None
    without_embeddings: int | None = None


class SourceLook(NamedTuple):
    """Counts in one snapshot of PostgreSQL. `began`: its clock then (Unix seconds); `lsn`: its WAL's end."""

    tables: Mapping[str, Counts]
    began: float
    lsn: int


class StoreLook(NamedTuple):
    """Counts in a store. What is below `offsets` was surely in; `notes` are figures of this kind of store."""

    tables: Mapping[str, Counts]
    offsets: Offsets
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    notes: Mapping[str, Any] = {}


class Memory(BaseModel):
    """One record and where it comes from. `outdated`: a newer state of it waits as a dead letter."""

    key: dict[str, Any]
    row: dict[str, str]
    source: str
    position: str | None = None
    vector: dict[str, int] | None = None
    outdated: str | None = None


class Source(Protocol):
    """PostgreSQL. Raises ConnectError; ConfigError and PreconditionError for what was asked wrongly."""

    name: str

    async def look(self) -> SourceLook:
        """Counts every selected table: a walk over each."""

    async def ping(self) -> None:
        """Returns when it answers."""

    async def ready(self) -> None:
        """Returns when it also has tables of ours and the control schema. Raises AbsentError, a ConnectError."""

    async def nudge(self) -> int:
        """Writes a heartbeat, so that whoever waits for a position need not wait for the next one; its LSN, which is
        below that of its commit."""

    async def kinds(self, table: str) -> Mapping[str, Kind]:
        """How values of each column are compared, as they travel: a masked column is text. As last known while it does
        not answer, {} until it has."""

    async def memory(self, table: str, identity: str) -> Memory | None:
        """The record as it is there now."""

    async def newest(self, table: str, limit: int) -> list[Memory]:
        """The latest records, past every cache."""

    async def recent(self, table: str, user: str, limit: int) -> list[Memory]:
        """A user's records, newest first. Raises ConfigError for a table without an index of users."""

    async def versions(self, table: str, identity: str) -> dict[str, Any]:
        """The record in PostgreSQL and in each store, and which store is behind."""


class StoreView(Protocol):
    """A store. Raises ConnectError, StoreError."""

    name: str

    def keeps(self, table: str) -> bool:
        """Whether records of `schema.table` belong into it."""

    def expires(self, table: str) -> bool:
        """Whether they leave it by themselves, so that fewer than in PostgreSQL are no difference."""

    async def offsets(self) -> Offsets:
        """The next offset of each partition. Raises StoreError while it holds nothing of ours."""

    async def look(self, tables: Sequence[str]) -> StoreLook:
        """Counts the records of these tables: a walk over the store."""


class WorkingMemory(StoreView, Protocol):
    """Redis, which also hands out records."""

    async def rows(self, table: str, keys: Sequence[bytes]) -> Sequence[Row | None]:
        """The records with these topic keys, None for one that is not there."""

    async def memory(self, table: str, identity: str) -> Memory | None:
        """One record by its key as a person types it."""

    async def recent(self, table: str, user: str, limit: int) -> list[Memory]:
        """A user's records, newest first. Raises ConfigError for a table without an index of users."""


class Index(Protocol):
    """The index's service."""

    async def search(self, query: IndexQuery) -> IndexHits:
        """Raises ConfigError for a question it cannot answer, PreconditionError when `min_position` does not come."""


@dataclass(frozen=True)
class Parts:
    """Everything. `table` is the index's, and what is meant where a request names none."""

    table: str
    objective_seconds: float
    stats_seconds: float
    source: Source
    memory: WorkingMemory
    stores: Sequence[StoreView]
    index: Index
    timeline: Timeline
    wishes: Wishes
