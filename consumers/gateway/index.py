"""The index's own service, inside the FAISS consumer, for our other processes: search, records, figures, health.

The index lives in that process, so nobody else can answer. Clients ask the gateway (app.py), which hands on. An index
that cannot be read is down with its reason; nothing is ever shown as 0 because it could not be asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from aiokafka.errors import KafkaError
from fastapi import FastAPI, HTTPException, Response
from fastapi.exceptions import RequestValidationError

from cdc import __version__
from cdc.envelope import decode_key
from cdc.errors import ConnectError, StoreError
from cdc.position import decode_position
from cdc.version import decode_vector
from consumers.conditions import Where
from consumers.freshness import Freshness
from consumers.gateway.asked import IndexQuery
from consumers.gateway.models import Figures, Health, IndexHit, IndexHits, IndexStats
from consumers.gateway.records import VectorOf, Verifiable, records
from consumers.gateway.refusals import malformed
from consumers.store import Inspectable, Partition, Version


class Found(NamedTuple):
    """One result of a search; `key` is the topic's key bytes."""

    key: bytes
    score: float
    version: Version


class Searchable(Protocol):
    """The index's side."""

    async def search(self, query: str | Sequence[float], k: int, where: Where | None) -> Sequence[Found]:
        """The best `k` for which `where` holds, best first. Raises StoreError for what it cannot use, and when it has
        no index."""


class Counted(Inspectable, Protocol):
    """The index's reading side."""

    async def figures(self) -> Figures:
        """Of the index at one moment, from the index itself. Raises StoreError before it is loaded."""


@dataclass
class Parts:
    """What the service answers from. `wait_for` returns once a position is applied; `reached` is the next offset of
    each partition."""

    store: Counted
    index: Searchable
    freshness: Freshness
    objective_seconds: float
    wait_for: Callable[[bytes], Awaitable[None]]
    reached: Callable[[], Mapping[Partition, int]]
    vector_of: VectorOf | None = None
    verified: Verifiable | None = None


def create_app(parts: Parts) -> FastAPI:
    """The application; serve it with `GatewayServer`."""
    app = FastAPI(title="memory-cdc index", version=__version__)
    app.add_exception_handler(RequestValidationError, malformed)
    app.include_router(records(parts.store, parts.freshness, parts.vector_of, parts.verified))

    @app.post("/search")
    async def search(query: IndexQuery) -> IndexHits:
        """The nearest records to a text or a vector."""
        await _wait(parts, query)
        found = await _search(parts, query)
        return IndexHits(
            hits=[_hit(hit) for hit in found],
            position=_text(parts.freshness.position),
            age_seconds=parts.freshness.age(),
        )

    @app.get("/health")
    async def health(response: Response) -> Health:
        """200 while the index answers and is fresh, else 503."""
        found = _health(parts, await _stats(parts))
        response.status_code = 200 if found.status == "ok" else 503
        return found

    @app.get("/stats")
    async def stats() -> IndexStats:
        """Figures from the index itself."""
        return await _stats(parts)

    return app


async def _wait(parts: Parts, query: IndexQuery) -> None:
    if query.min_position is None:
        return
    try:
        await asyncio.wait_for(parts.wait_for(query.min_position.encode()), query.wait_seconds)
    except TimeoutError as error:
        late = f"the index has not applied {query.min_position} within {query.wait_seconds:g} s"
        raise HTTPException(412, late) from error
    except KafkaError as error:
        raise HTTPException(503, f"Kafka does not say where its logs end: {error!r}") from error


async def _search(parts: Parts, query: IndexQuery) -> Sequence[Found]:
    asked: str | Sequence[float] = query.text if query.text is not None else query.vector or ()
    try:
        return await parts.index.search(asked, query.k, query.where())
    except (StoreError, ConnectError) as error:
        own = await _stats(parts)  # an index that can be asked for its figures is not down: it is the query
        if own.up:
            raise HTTPException(422, str(error)) from error
        raise HTTPException(503, f"the index is down: {own.reason}") from error


def _hit(found: Found) -> IndexHit:
    return IndexHit(
        topic_key=found.key.decode(),
        key=decode_key(found.key),
        score=found.score,
        position=found.version.position.decode(),
        vector=decode_vector(found.version.vector),
    )


async def _stats(parts: Parts) -> IndexStats:
    """The offsets are older than the figures: what is below them is surely in."""
    stats = IndexStats(
        up=True,
        position=_text(parts.freshness.position),
        fresh_until=parts.freshness.at,
        age_seconds=parts.freshness.age(),
        offsets=[(topic, partition, offset) for (topic, partition), offset in parts.reached().items()],
    )
    try:
        return stats.model_copy(update={"figures": await parts.store.figures()})
    except (StoreError, ConnectError) as error:
        return stats.model_copy(update={"up": False, "reason": str(error)})


def _health(parts: Parts, own: IndexStats) -> Health:
    if not own.up:
        return Health(status="down", reason=own.reason)
    if own.age_seconds is None:
        return Health(status="stale", reason="no heartbeat has come through yet; is the reader running?")
    if own.age_seconds > parts.objective_seconds:
        late = f"{own.age_seconds:.1f} s behind the source, the objective is {parts.objective_seconds:g} s"
        return Health(status="stale", reason=late, age_seconds=own.age_seconds)
    return Health(status="ok", age_seconds=own.age_seconds)


def _text(position: bytes) -> str | None:
    return str(decode_position(position)) if position else None
