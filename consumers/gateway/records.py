"""The index's records, for other processes: what `cdc verify`, `cdc versions` and a rebuild compare."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, HTTPException, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from cdc.envelope import encode_floats
from cdc.errors import ConnectError, StoreError
from consumers.freshness import Freshness
from consumers.store import Inspectable

KEYS = 1000  # a request; with vectors some 2 MB of answer
LINES = 1000  # sent at once
JSON = "application/json"
NAME = r"^[^.]+\.[^.]+$"

Vector = npt.NDArray[np.float32]
VectorOf = Callable[[bytes], Awaitable[Vector | None]]


class Keys(BaseModel):
    """The topics' key bytes as text; `vectors`: with what the index really holds."""

    model_config = ConfigDict(extra="forbid")

    table: str = Field(pattern=NAME)
    keys: list[str] = Field(max_length=KEYS)
    vectors: bool = False


class Checked(BaseModel):
    """Keys of which checksums are asked, one of all or of `each`; `versions`: over their version vectors too;
    `vectors`: over their vectors."""

    model_config = ConfigDict(extra="forbid")

    table: str = Field(pattern=NAME)
    keys: list[str] = Field(max_length=KEYS)
    versions: bool = False
    each: bool = False
    vectors: bool = True


class Doubted(BaseModel):
    """Keys whose vectors are not what they have to be; `reached`: the highest position there can be (wire form)."""

    model_config = ConfigDict(extra="forbid")

    reached: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$")

    table: str = Field(pattern=NAME)
    keys: list[str] = Field(max_length=KEYS)


class Disagreement(Protocol):
    """Keys without their one vector, deleted keys with one, how many vectors no key has, and what the index goes by."""

    @property
    def different(self) -> Sequence[bytes]: ...
    @property
    def extra(self) -> Sequence[bytes]: ...
    @property
    def nameless(self) -> int: ...
    @property
    def floor(self) -> bytes: ...
    @property
    def watermark(self) -> bytes: ...


class Disagreed(BaseModel):
    """The same over HTTP."""

    different: list[str]
    extra: list[str]
    nameless: int
    floor: str
    watermark: str


class Verifiable(Protocol):
    """What verify asks of an index beside its records."""

    async def digests(
        self, schema: str, table: str, keys: Sequence[bytes], *, versions: bool, each: bool, vectors: bool = True
    ) -> list[str]:
        """Checksums over what is really held; see consumers.faiss.digests. Raises StoreError."""

    async def stamps(self, schema: str, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """What is held as the version of each live record, as one text. Raises StoreError."""

    async def disagreement(self) -> Disagreement:
        """Where the index does not agree with itself. Raises StoreError."""

    async def agree(self) -> int:
        """Mends that; keys that lose their vector by it wait for their next record. Raises StoreError."""

    async def lower(self, schema: str, table: str, keys: Sequence[bytes], reached: bytes) -> int:
        """Rows of these keys with a higher position take whatever comes next. Raises StoreError."""

    async def doubt(self, schema: str, table: str, keys: Sequence[bytes]) -> None:
        """The next record of each of these keys is decoded in full. Raises StoreError."""


class Held(BaseModel):
    """One record's version: position in its wire form, version vector as JSON text, vector as `f32:…`."""

    position: str
    vector: str
    deleted: bool
    floats: str | None = None


class Reached(BaseModel):
    """Up to where everything is applied (wire form, None before the first heartbeat), and how old that is."""

    position: str | None
    age_seconds: float | None


def records(
    store: Inspectable, freshness: Freshness, vector_of: VectorOf | None, verified: Verifiable | None = None
) -> APIRouter:
    """`POST /versions`, `GET /records`, `GET /reached`; what verify and repair ask of what is `verified`."""
    router = APIRouter()
    if verified is not None:
        _verifying(router, verified)

    @router.post("/versions")
    async def versions(asked: Keys) -> list[Held | None]:
        """What the index holds of some keys, None for those it does not know."""
        keys = [key.encode() for key in asked.keys]
        schema, table = asked.table.split(".")
        try:
            found = await store.versions(schema, table, keys)
            floats = await _floats(keys, vector_of if asked.vectors else None)
        except (StoreError, ConnectError) as error:
            raise HTTPException(503, str(error)) from error
        return [
            None
            if version is None
            else Held(
                position=version.position.decode(),
                vector=version.vector.decode(),
                deleted=version.deleted,
                floats=text,
            )
            for version, text in zip(found, floats, strict=True)
        ]

    @router.get("/records")
    async def listed(table: str = Query(pattern=NAME)) -> StreamingResponse:
        """Every live record as a line `[key, position]`."""
        schema, name = table.split(".")
        try:
            await store.count(schema, name)  # a store that cannot be read says so before the first line
        except (StoreError, ConnectError) as error:
            raise HTTPException(503, str(error)) from error
        return StreamingResponse(_lines(store, schema, name), media_type="application/x-ndjson")

    @router.get("/reached")
    async def reached() -> Reached:
        """How far the index is."""
        return Reached(position=freshness.position.decode() or None, age_seconds=freshness.age())

    return router


def _verifying(router: APIRouter, store: Verifiable) -> None:
    @router.post("/digests")
    async def digests(asked: Checked) -> list[str]:
        """Checksums in hex, one of all keys or one of each."""
        schema, table = asked.table.split(".")
        keys = [key.encode() for key in asked.keys]
        try:
            wanted = asked.model_dump(include={"versions", "each", "vectors"})
            return await store.digests(schema, table, keys, **wanted)
        except StoreError as error:
            raise HTTPException(503, str(error)) from error

    @router.post("/stamps")
    async def stamps(asked: Keys) -> Response:
        """A line of each key as JSON: its version as one text, or null."""
        schema, table = asked.table.split(".")
        try:
            found = await store.stamps(schema, table, [key.encode() for key in asked.keys])
        except StoreError as error:
            raise HTTPException(503, str(error)) from error
        return Response(msgspec.json.encode([None if one is None else one.decode() for one in found]), media_type=JSON)

    @router.get("/disagreement")
    async def disagreement() -> Disagreed:
        """Where the index does not agree with itself."""
        try:
            found = await store.disagreement()
        except StoreError as error:
            raise HTTPException(503, str(error)) from error
        different, extra = ([key.decode() for key in keys] for keys in (found.different, found.extra))
        return Disagreed(
            different=different, extra=extra, nameless=found.nameless, floor=found.floor.decode(),
            watermark=found.watermark.decode(),
        )  # fmt: skip

    @router.post("/agree")
    async def agree() -> int:
        """Before rows are sent again: takes out of the index what no key stands for."""
        try:
            return await store.agree()
        except StoreError as error:
            raise HTTPException(503, str(error)) from error

    @router.post("/doubt", status_code=204)
    async def doubt(asked: Doubted) -> None:
        """Before rows are sent again: text that did not change is embedded again then."""
        schema, table = asked.table.split(".")
        try:
            keys = [key.encode() for key in asked.keys]
            await store.doubt(schema, table, keys)
            if asked.reached is not None:
                await store.lower(schema, table, keys, asked.reached.encode())
        except StoreError as error:
            raise HTTPException(503, str(error)) from error


async def _floats(keys: Sequence[bytes], vector_of: VectorOf | None) -> Sequence[str | None]:
    if vector_of is None:
        return [None] * len(keys)
    found = await asyncio.gather(*(vector_of(key) for key in keys))
    return [None if vector is None else encode_floats(vector) for vector in found]


async def _lines(store: Inspectable, schema: str, table: str) -> AsyncIterator[bytes]:
    lines: list[bytes] = []
    async for key, position in store.scan(schema, table):
        lines.append(msgspec.json.encode((key.decode(), position.decode())))
        if len(lines) == LINES:
            yield b"\n".join((*lines, b""))
            lines.clear()
    yield b"\n".join((*lines, b"")) if lines else b""
