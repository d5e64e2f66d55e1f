"""Whether Redis holds a row's content: checksums over many records first, field by field only where those differ.

A checksum is made by the server over what its hashes really hold (digest.lua), and here over what the store would have
written for the row: by the store's own encoder, in the same form. Expired and damaged records thus differ alike.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from cdc.config import Config
from cdc.errors import DecodeError, RecordError
from cdc.position import ZERO
from cdc.version import decode_vector
from consumers.redis import RedisStore
from consumers.redis.layout import Layout
from consumers.redis.rows import RESERVED, RowEncoder
from consumers.store import Record

HEAD, SHAPE = 7, 2  # what RowEncoder puts before the values, and where among it the number of the columns' shape is
OWN = (b"_pos", b"_ver", b"_ts")  # fields of ours that each record has
STRING_HEADER = 5  # of MessagePack's str 32, which wraps a vector
RANGE = 500  # records of one checksum: the server is busy with them for some 2 ms
RANGE_BYTES = 1 << 20  # of rows as JSON; SHA-1 takes 2 ms a megabyte

T = TypeVar("T")
Pairs = Sequence[tuple[bytes, bytes]]  # topic key, row as JSON
_pack = msgspec.msgpack.encode
_ROW = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Expected(NamedTuple):
    """What a row has to be in Redis: its place among the rows asked about, its Redis key, the number of its columns'
    shape, and its checksum's text."""

    place: int
    name: bytes
    shape: int
    text: bytes


class Seen:
    """Names that were met, 64 bits of each: one in 10^12 others is taken for one of ten million."""

    def __init__(self) -> None:
        self._pieces: list[npt.NDArray[np.int64]] = []
        self._sorted: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def add(self, names: Sequence[bytes]) -> None:
        """These are met."""
        self._pieces.append(np.fromiter(map(hash, names), np.int64, len(names)))

    def others(self, names: Sequence[bytes]) -> list[bytes]:
        """Those that were not."""
        if self._pieces:
            self._sorted = np.sort(np.concatenate([self._sorted, *self._pieces]))
            self._pieces.clear()
        if not len(self._sorted):
            return list(names)
        hashes = np.fromiter(map(hash, names), np.int64, len(names))
        places = np.minimum(np.searchsorted(self._sorted, hashes), len(self._sorted) - 1)
        return [names[at] for at in np.flatnonzero(self._sorted[places] != hashes).tolist()]


class RedisContent:
    """Every column of a row against the fields of its hash. Fills `Content` of consumers.verify."""

    def __init__(self, config: Config, schema: str, table: str, store: RedisStore) -> None:
        self._table, self._store = (schema, table), store
        self._encoder = RowEncoder(f"{schema}.{table}", config.table(schema, table), config.redis.vectors, "")
        self._known: Layout | None = None
        self._seen = Seen()

    async def matches(self, pairs: Pairs) -> list[bool]:
        """Raises ConnectError, StoreError."""
        same = [False] * len(pairs)
        layout = await self._layout()
        if layout is None:
            return same
        await overlapped(self._range(layout, pairs, chunk, same) for chunk in _ranges(pairs))
        return same

    async def others(self) -> AsyncIterator[bytes]:
        """Keys of records whose Redis keys were not among those of the rows; see Seen."""
        layout = await self._layout()
        if layout is None:
            return
        async for names in self._store.names(layout):
            for key in await self._store.topic_keys(layout, self._seen.others(names)):
                yield key

    async def _layout(self) -> Layout | None:
        if self._known is None:
            self._known = await self._store.layout(*self._table)
        return self._known

    def _expected(self, layout: Layout, pairs: Pairs, places: range) -> Iterator[Expected]:
        """Leaves out what cannot be stored: whatever is there, is not that."""
        for place in places:
            key, row = pairs[place]
            try:
                name, stored_key = layout.redis_key(key)
                encoded = self._encoder.encode(record_of(key, row), stored_key)
            except (DecodeError, RecordError):
                continue
            values = encoded[HEAD:]
            fields: list[Any] = [False if value is None else _shortest(value) for value in (*values, stored_key)]
            number = len(OWN) + len(fields) - fields.count(False)
            yield Expected(place, name, encoded[SHAPE], _pack([*fields, str(number)]))

    def _range(self, layout: Layout, pairs: Pairs, places: range, same: list[bool]) -> Coroutine[Any, Any, None]:
        """The work that is left for the server once the rows are encoded."""
        expected = list(self._expected(layout, pairs, places))
        self._seen.add([one.name for one in expected])
        return self._compare(pairs, expected, same)

    async def _compare(self, pairs: Pairs, expected: Sequence[Expected], same: list[bool]) -> None:
        """Marks the rows of one range that are held."""
        if not expected:
            return
        shape = expected[0].shape  # of all: a query's rows have the same columns
        usual = [one for one in expected if one.shape == shape]
        unlike = [one for one in expected if one.shape != shape]
        names, texts = [one.name for one in usual], [one.text for one in usual]
        fields = [*self._encoder.shapes[shape - 1], "_key"]
        if await self._store.digests(fields, names, each=False) != [_sha1(b"".join(texts))]:
            held = await self._store.digests(fields, names, each=True)
            unlike += [one for one, digest in zip(usual, held, strict=True) if digest != _sha1(one.text)]
        for one in expected:
            same[one.place] = True
        for one, equal in zip(unlike, await self._field_by_field(pairs, unlike), strict=True):
            same[one.place] = equal

    async def _field_by_field(self, pairs: Pairs, unlike: Sequence[Expected]) -> list[bool]:
        replies = await self._store.link.pipeline([("HGETALL", one.name) for one in unlike]) if unlike else []
        return [self.fields(*pairs[one.place]) == _fields(reply) for one, reply in zip(unlike, replies, strict=True)]

    def fields(self, key: bytes, row: bytes) -> dict[bytes, bytes]:
        """What the hash has to hold."""
        encoded = self._encoder.encode(record_of(key, row), None)
        columns, values = self._encoder.shapes[encoded[SHAPE] - 1], encoded[HEAD:]
        return {c.encode(): _bytes(value) for c, value in zip(columns, values, strict=True) if value is not None}


async def overlapped(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The works' results in order; while one waits for its server the next is made. Raises what the first to fail
    raises."""
    running: deque[asyncio.Task[T]] = deque()
    found: list[T] = []
    try:
        for work in works:
            running.append(asyncio.ensure_future(work))
            await asyncio.sleep(0)  # it writes its request
            if len(running) > 1:
                found.append(await running[0])
                running.popleft()
        while running:
            found.append(await running[0])
            running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return found


def _ranges(pairs: Pairs) -> Iterator[range]:
    start = size = 0
    for at, (_key, row) in enumerate(pairs):
        if at - start >= RANGE or (at > start and size + len(row) > RANGE_BYTES):
            yield range(start, at)
            start, size = at, 0
        size += len(row)
    if start < len(pairs):
        yield range(start, len(pairs))


def _sha1(text: bytes) -> bytes:
    """As redis.sha1hex gives it. It tells accident from sameness, nothing else."""
    return hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()


def _shortest(value: str | msgspec.Raw) -> str | msgspec.Raw:
    """A vector's bytes under the shortest header that MessagePack has for them, as Redis' cmsgpack writes them."""
    if isinstance(value, str):
        return value
    raw = bytes(value)[STRING_HEADER:]
    size = len(raw)
    if size < 32:
        return msgspec.Raw(bytes((0xA0 | size,)) + raw)
    if size < 1 << 8:
        return msgspec.Raw(bytes((0xD9, size)) + raw)
    return msgspec.Raw(b"\xda" + size.to_bytes(2, "big") + raw) if size < 1 << 16 else value


def record_of(key: bytes, row: bytes) -> Record:
    """A snapshot's record of the row."""
    value = b'{"op":"r","source":{"ts_us":0},"after":%b}' % row
    return Record(key, value, ZERO.encode(), b"{}", 0, 0)


def row_vector(row: bytes, column: str | None) -> dict[str, int] | None:
    """The version vector a row brings itself; None when it has none that can be read."""
    if column is None:
        return None
    try:
        raw = _ROW.decode(row).get(column)
        return None if raw is None else decode_vector(msgspec.json.decode(raw, type=str))
    except (msgspec.DecodeError, DecodeError):
        return None  # the reader then travels with the default, counted there


def _fields(reply: Any) -> dict[bytes, bytes] | None:
    if not isinstance(reply, dict) or not reply.keys() >= set(OWN):
        return None  # no hash of ours
    return {name: value for name, value in reply.items() if name.decode(errors="replace") not in RESERVED}


def _bytes(value: Any) -> bytes:
    """A field as Redis holds it."""
    return bytes(value)[STRING_HEADER:] if isinstance(value, msgspec.Raw) else str(value).encode()
