"""Single records and lists of them: from Redis, from PostgreSQL, and both beside each other."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Query
from pydantic import BaseModel

from cdc.errors import CdcError
from consumers.gateway.filling import filled
from consumers.gateway.parts import Memory, Parts, Source, WorkingMemory
from consumers.gateway.records import NAME

LIMIT = 1000  # records a list; the recency index keeps as many a user unless told otherwise
CHARACTERS = 1000  # of a key or a user

Identity = Annotated[str, Path(min_length=1, max_length=CHARACTERS, description="The key; JSON for several columns.")]
Table = Annotated[str | None, Query(pattern=NAME, max_length=CHARACTERS, description="schema.table; else the index's.")]
Limit = Annotated[int, Query(ge=1, le=LIMIT)]


class Memories(BaseModel):
    """Newest first; `source` is where they come from."""

    memories: list[Memory]
    source: str


async def _complete(parts: Parts, table: str) -> bool:
    """Whether Redis holds what was in the topics: a list of what it has would else look like all there is."""
    try:
        offsets = await parts.memory.offsets()
    except CdcError:
        return False  # /ready and /stats say why
    known = parts.timeline.newest is not None
    return known and filled(parts.timeline, offsets, [table], parts.objective_seconds) is None


def memories(parts: Parts) -> APIRouter:
    """`GET /memories…`."""
    router = APIRouter(prefix="/memories", tags=["memories"])

    @router.get("")
    async def recent(
        user_id: Annotated[str, Query(min_length=1, max_length=CHARACTERS)], limit: Limit = 20, table: Table = None
    ) -> Memories:
        """A user's records by recency: from Redis, from PostgreSQL while Redis is down or being filled."""
        wanted = table or parts.table
        place: WorkingMemory | Source = parts.memory if await _complete(parts, wanted) else parts.source
        return Memories(memories=await place.recent(wanted, user_id, limit), source=place.name)

    @router.get("/direct")
    async def direct(limit: Limit = 20, table: Table = None) -> Memories:
        """The newest records straight from PostgreSQL, past every cache: for diagnosis."""
        return Memories(memories=await parts.source.newest(table or parts.table, limit), source="postgres")

    @router.get("/{identity}")
    async def one(identity: Identity, table: Table = None) -> Memory:
        """From Redis, and from PostgreSQL when it is not there or Redis is down; `source` says which."""
        wanted = table or parts.table
        try:
            found = await parts.memory.memory(wanted, identity)
        except CdcError:
            found = None  # a cache that cannot answer does not hide the record; /ready and /stats say that it is down
        found = found or await parts.source.memory(wanted, identity)
        if found is None:
            raise HTTPException(404, f"{wanted} has no such record")
        return found

    @router.get("/{identity}/versions")
    async def versions(identity: Identity, table: Table = None) -> dict[str, Any]:
        """The record in PostgreSQL and in each store, and which store is behind."""
        return await parts.source.versions(table or parts.table, identity)

    return router
