"""HTTP beside a consumer: search in the index, health, statistics.

It owns no store: what it answers comes from `Parts`, which the command that starts the process puts together. A
store that is down is shown as down with its reason; nothing is ever shown as 0 because it could not be asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from cdc import __version__
from cdc.envelope import decode_key
from cdc.errors import CdcError, ConnectError, StoreError
from cdc.position import decode_position
from cdc.version import decode_vector
from consumers.freshness import Freshness
from consumers.gateway.models import Health, Hit, Hits, Query, Stats, StoreStats
from consumers.gateway.records import VectorOf, records
from consumers.store import Inspectable, Version

Rows = Callable[[Sequence[bytes]], Awaitable[Sequence[Mapping[str, str] | None]]]


class Found(NamedTuple):
    """One result of a search; `key` is the topic's key bytes."""

    key: bytes
    score: float
    version: Version


class Searchable(Protocol):
    """The index's side."""

    async def search(self, query: str | Sequence[float], k: int) -> Sequence[Found]:
        """The best `k`, best first. Raises StoreError for a query it cannot use, and when it has no index."""


@dataclass
class Parts:
    """What the gateway speaks for. `store` names the one whose process this is; `counts` may hold others too.

    `rows` fetches the fields of keys from working memory; `wait_for` returns once a position is applied here."""

    store: str
    index: Searchable
    freshness: Freshness
    objective_seconds: float
    wait_for: Callable[[bytes], Awaitable[None]]
    tables: Callable[[], Sequence[tuple[str, str]]]
    counts: Mapping[str, Inspectable] = field(default_factory=dict)
    rows: Rows | None = None
    vector_of: VectorOf | None = None


def create_app(parts: Parts) -> FastAPI:
    """The application; serve it with `GatewayServer`."""
    app = FastAPI(title="memory-cdc gateway", version=__version__)
    app.add_exception_handler(RequestValidationError, _malformed)
    if (own := parts.counts.get(parts.store)) is not None:
        app.include_router(records(own, parts.freshness, parts.vector_of))

    @app.post("/search")
    async def search(query: Query) -> Hits:
        """The nearest records to a text or a vector."""
        await _wait(parts, query)
        found = await _search(parts, query)
        rows, rows_error = await _rows(parts, [hit.key for hit in found])
        return Hits(
            hits=[_hit(hit, row) for hit, row in zip(found, rows, strict=True)],
            rows_error=rows_error,
            position=_text(parts.freshness.position),
            age_seconds=parts.freshness.age(),
        )

    @app.get("/health")
    async def health(response: Response) -> Health:
        """200 while the index answers and is fresh, else 503."""
        found = _health(parts, await _stats(parts, parts.store))
        response.status_code = 200 if found.status == "ok" else 503
        return found

    @app.get("/stats")
    async def stats() -> Stats:
        """Counts from the stores themselves."""
        names = list(parts.counts)
        found = await asyncio.gather(*(_stats(parts, name) for name in names))
        return Stats(version=__version__, stores=dict(zip(names, found, strict=True)))

    return app


async def _malformed(_request: Request, error: Exception) -> JSONResponse:
    """422 with each field and its rule, without the input: it may hold NaN, which JSON cannot."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    return JSONResponse({"detail": [{"loc": e["loc"], "msg": e["msg"], "type": e["type"]} for e in found]}, 422)


async def _wait(parts: Parts, query: Query) -> None:
    if query.min_position is None:
        return
    try:
        await asyncio.wait_for(parts.wait_for(query.min_position.encode()), query.wait_seconds)
    except TimeoutError as error:
        raise HTTPException(
            504, f"the index has not applied {query.min_position} within {query.wait_seconds} s"
        ) from error


async def _search(parts: Parts, query: Query) -> Sequence[Found]:
    asked: str | Sequence[float] = query.text if query.text is not None else query.vector or ()
    try:
        return await parts.index.search(asked, query.k)
    except (StoreError, ConnectError) as error:
        own = await _stats(parts, parts.store)  # a store that can be asked for its rows is not down: it is the query
        if own.up:
            raise HTTPException(422, str(error)) from error
        raise HTTPException(503, f"{parts.store} is down: {own.reason}") from error


async def _rows(parts: Parts, keys: Sequence[bytes]) -> tuple[Sequence[Mapping[str, str] | None], str | None]:
    """The rows' fields, or why there are none: hits are worth having without them."""
    if parts.rows is None or not keys:
        return [None] * len(keys), None
    try:
        return await parts.rows(keys), None
    except CdcError as error:
        return [None] * len(keys), str(error)


def _hit(found: Found, row: Mapping[str, Any] | None) -> Hit:
    return Hit(
        key=decode_key(found.key),
        score=found.score,
        position=found.version.position.decode(),
        vector=decode_vector(found.version.vector),
        row=None if row is None else dict(row),
    )


async def _stats(parts: Parts, name: str) -> StoreStats:
    own = name == parts.store
    stats = StoreStats(
        up=True,
        position=_text(parts.freshness.position) if own else None,
        fresh_until=parts.freshness.at if own else None,
        age_seconds=parts.freshness.age() if own else None,
    )
    counts = parts.counts.get(name)
    if counts is None:
        return stats
    try:
        rows = {f"{schema}.{table}": await counts.count(schema, table) for schema, table in parts.tables()}
    except (StoreError, ConnectError) as error:
        return stats.model_copy(update={"up": False, "reason": str(error)})
    return stats.model_copy(update={"rows": rows})


def _health(parts: Parts, own: StoreStats) -> Health:
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
