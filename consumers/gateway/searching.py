"""`POST /search`: the index finds, Redis has the rows; with a position to wait for, one reads one's own writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from fastapi import APIRouter, HTTPException
from pydantic import Field, model_validator

from cdc.errors import CdcError, ConnectError, PreconditionError
from cdc.position import LSN_PATTERN, MAX_ORDINAL, Position, decode_position, parse_lsn
from consumers.conditions import Kind
from consumers.gateway.asked import IndexQuery, Query
from consumers.gateway.models import IndexHit, IndexHits
from consumers.gateway.parts import Parts, Row
from consumers.gateway.refusals import Refusal


class Question(Query):
    """As the index takes it, and `min_lsn`: what `pg_current_wal_insert_lsn()` said after one's own commit."""

    min_lsn: Annotated[str, Field(pattern=LSN_PATTERN)] | None = None

    @model_validator(mode="after")
    def _one_moment(self) -> Question:
        if self.min_lsn is not None and self.min_position is not None:
            raise ValueError("give either min_lsn or min_position")
        return self


class Hit(IndexHit):
    """`row` has the record's columns as text; it is absent when Redis does not hold it (yet)."""

    row: dict[str, str] | None = None


class Hits(IndexHits):
    """Best first. `rows_error` says why rows lack their columns."""

    hits: list[Hit]  # type: ignore[assignment]
    rows_error: str | None = None


def searching(parts: Parts) -> APIRouter:
    """`POST /search`."""
    router = APIRouter(tags=["search"])

    @router.post("/search", responses={412: {"model": Refusal}})
    async def search(question: Question) -> Hits:
        """The nearest records to a text or a vector among those that `filter` lets through. 412 when the index does not
        see `min_lsn` or `min_position` in `wait_seconds`."""
        asked = question.model_dump(exclude={"min_lsn"}, by_alias=True) | await _moment(parts, question)
        query = IndexQuery.model_validate(asked | {"kinds": await _kinds(parts, question)})
        try:
            found = await parts.index.search(query)
        except PreconditionError as error:
            raise HTTPException(412, str(error)) from error
        rows, rows_error = await _rows(parts, [hit.topic_key.encode() for hit in found.hits])
        hits = [
            Hit(**hit.model_dump(), row=None if row is None else dict(row))
            for hit, row in zip(found.hits, rows, strict=True)
        ]
        return Hits(hits=hits, rows_error=rows_error, position=found.position, age_seconds=found.age_seconds)

    return router


async def _kinds(parts: Parts, question: Question) -> Mapping[str, Kind]:
    """How PostgreSQL compares the columns. Where it could not be asked yet the index goes by what the values are."""
    kinds = await parts.source.kinds(parts.table) if question.filter else {}
    return {name: kinds[name] for name in question.filter if name in kinds}


async def _moment(parts: Parts, question: Question) -> dict[str, str]:
    """The position to wait for. Nothing may have been written since, so a heartbeat is asked for."""
    if question.min_lsn is not None:
        newest = parts.timeline.newest
        if newest is None:
            raise ConnectError("no heartbeat has come through yet", hint="is the reader running?")
        lsn = parse_lsn(question.min_lsn)
        position = Position(decode_position(newest.position).epoch, lsn, MAX_ORDINAL).encode().decode()
    elif question.min_position is not None:
        lsn, position = decode_position(question.min_position).commit_lsn, question.min_position
    else:
        return {}
    if not parts.timeline.past(lsn):
        await parts.source.nudge()
    return {"min_position": position}


async def _rows(parts: Parts, keys: Sequence[bytes]) -> tuple[Sequence[Row | None], str | None]:
    """The rows, or why there are none: hits are worth having without them."""
    if not keys:
        return [], None
    try:
        return await parts.memory.rows(parts.table, keys), None
    except CdcError as error:
        return [None] * len(keys), str(error)
