"""Whether the index holds a row's vector: checksums over many first, vector by vector only where those differ.

What is compared is exact. Under `ip` and `l2` the index keeps vectors as they come, bit for bit. Under `cosine` it
keeps them divided by their length, and another processor may sum that length in another order; so a vector that differs
is the row's own when it is the row's divided by some float32 within a few units in the last place of the length:
division is rounded exactly everywhere (IEEE 754), so that one changed bit fits no divisor. Only vectors of a model that
is run again here are compared with a tolerance.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cdc.commands.contents import Pairs, Seen, overlapped, record_of, row_vector
from cdc.commands.index_client import KEYS, RemoteIndex
from cdc.config import Config
from cdc.version import decode_vector, encode_vector
from consumers.embedder import Embedder, embedder_from
from consumers.faiss.arrays import Ids
from consumers.faiss.columns import Source, Staged, TextColumn, VectorColumn
from consumers.faiss.digests import DIGEST_BYTES, text_of
from consumers.faiss.filters import Filters
from consumers.faiss.ledger import State
from consumers.faiss.metric import Metric
from consumers.store import Record, Version

LISTED = 10_000  # keys looked up at once
TOLERANCE = 1e-4  # of a vector's length: what a model gives in another batch
ULPS = 32  # a float32 sum of thousands of squares is off by fewer units in the last place

Vector = npt.NDArray[np.float32]


class IndexContent:
    """The vector a row has to have against the one the index holds, and its version vector where it has a column. Fills
    `Content` of consumers.verify."""

    def __init__(self, config: Config, schema: str, table: str, index: RemoteIndex) -> None:
        settings, metric = config.table(schema, table), config.faiss.metric
        self._table, self._index = (schema, table), index
        self._version = settings.version_column
        embedder = None if settings.vector else embedder_from(config.embedder)
        self._exact = embedder is None or config.embedder.kind == "hash"
        self._kept = _source(config, schema, table, metric, embedder)  # vectors as the index keeps them
        self._own = _source(config, schema, table, None, embedder)  # as the row has them
        self._cosine = metric == "cosine"
        self._seen = Seen()

    @staticmethod
    def columns(config: Config, schema: str, table: str) -> set[str]:
        """What of a row is needed."""
        settings = config.table(schema, table)
        own = (settings.vector or settings.text, settings.version_column)
        return {name for name in own if name} | set(config.filters())

    async def matches(self, pairs: Pairs) -> list[bool]:
        """Raises ConnectError, StoreError."""
        self._seen.add([key for key, _row in pairs])
        if pairs:
            await self._learn_dimension([key for key, _row in pairs[:KEYS]])
        chunks = (pairs[start : start + KEYS] for start in range(0, len(pairs), KEYS))
        found = await overlapped(self._range(chunk, self._texts(chunk)) for chunk in chunks)
        return [equal for chunk in found for equal in chunk]

    async def others(self) -> AsyncIterator[bytes]:
        """See Content; of the keys 64 bits each are remembered, see Seen."""
        listed: list[bytes] = []
        async for key, _position in self._index.scan(*self._table):
            listed.append(key)
            if len(listed) == LISTED:
                for other in self._seen.others(listed):
                    yield other
                listed.clear()
        for other in self._seen.others(listed):
            yield other

    async def _range(self, pairs: Pairs, texts: Sequence[bytes]) -> list[bool]:
        keys, versions = [key for key, _row in pairs], self._version is not None
        if await self._index.digests(*self._table, keys, versions=versions, each=False) == [digest(b"".join(texts))]:
            return [True] * len(pairs)
        held = await self._index.digests(*self._table, keys, versions=versions, each=True)
        same = [digest(text) == other for text, other in zip(texts, held, strict=True)]
        unlike = [place for place, equal in enumerate(same) if not equal]
        for place, equal in zip(unlike, await self._one_by_one([pairs[place] for place in unlike]), strict=True):
            same[place] = equal
        return same

    async def _learn_dimension(self, keys: Sequence[bytes]) -> None:
        """Where the config names none, the first vector of the index decided."""
        if self._kept.dimension is None:
            found = await self._index.records(*self._table, keys)
            sizes = [vector.size for _version, vector in found if vector is not None]
            self._kept.dimension = self._own.dimension = sizes[0] if sizes else None

    def _texts(self, pairs: Pairs) -> list[bytes]:
        vectors = _staged(self._kept, pairs)
        found = []
        for (_key, row), (state, vector, filters) in zip(pairs, vectors, strict=True):
            wanted = row_vector(row, self._version)
            found.append(text_of(state, vector, encode_vector(wanted) if wanted is not None else b"", filters))
        return found

    async def _one_by_one(self, pairs: Pairs) -> list[bool]:
        keys = [key for key, _row in pairs]
        held = await self._index.records(*self._table, keys)
        kept = _staged(self._kept, pairs)
        states = [state for state, _vector, _filters in kept]
        wanted = [vector for _state, vector, _filters in _staged(self._own, pairs)]
        others = await self._index.digests(*self._table, keys, versions=False, each=True, vectors=False) if keys else []
        filtered = [digest(text_of(state, None, b"", filters)) for state, _vector, filters in kept]
        return [
            version is not None
            and not version.deleted
            and state in (State.LIVE, State.BARE)
            and self._same_version(row, version)
            and self._same_vector(own, vector)
            and same
            for (_key, row), state, own, (version, vector), same in zip(
                pairs, states, wanted, held, map(str.__eq__, filtered, others), strict=True
            )
        ]

    def _same_version(self, row: bytes, held: Version) -> bool:
        wanted = row_vector(row, self._version)
        return wanted is None or wanted == decode_vector(held.vector)

    def _same_vector(self, wanted: Vector | None, held: Vector | None) -> bool:
        if wanted is None or held is None:
            return wanted is None and held is None
        if wanted.shape != held.shape:
            return False
        if self._cosine:
            return _scaled(wanted, held) or (not self._exact and _close(_unit(wanted), held))
        return bool(wanted.tobytes() == held.tobytes()) or (not self._exact and _close(wanted, held))


def digest(text: bytes) -> str:
    """As the index gives it."""
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES).hexdigest()


class _AsWritten(VectorColumn):
    """Vectors neither prepared nor refused."""

    def _check(self, staged: Staged, records: Sequence[Record], places: Ids, vectors: Vector) -> None:
        staged.places, staged.vectors = places, vectors


def _source(config: Config, schema: str, table: str, metric: Metric | None, embedder: Embedder | None) -> Source:
    """`metric` None: vectors as they come."""
    settings = config.table(schema, table)
    if embedder is not None:
        return TextColumn(settings.text or "", metric or "ip", embedder, config.filters())
    column, dimension, filters = settings.vector or "", config.faiss.dimension, config.filters()
    if metric is None:
        return _AsWritten(column, "ip", dimension, filters)
    return VectorColumn(column, metric, dimension, filters)


def _staged(source: Source, pairs: Pairs) -> list[tuple[int, Vector | None, bytes]]:
    """State and vector of each row, and what a live one has in the columns that searches filter by."""
    number = len(pairs)
    unknown = np.full(number, State.UNKNOWN, dtype=np.uint8)
    staged = source.stage([record_of(*pair) for pair in pairs], unknown, np.zeros(number, dtype=np.uint64))
    found: list[tuple[int, Vector | None, bytes]] = [(state, None, b"") for state in staged.states.tolist()]
    filters = _spelled(source, [staged.rows[place] for place in staged.places.tolist()])
    for place, vector, values in zip(staged.places.tolist(), staged.vectors, filters, strict=True):
        found[place] = (State.LIVE, vector, values)
    return found


def _spelled(source: Source, rows: Sequence[Any]) -> list[bytes]:
    filters, ids = Filters(source.reader.filters), np.arange(len(rows))
    filters.note(ids, filters.encode(source.reader.filtered(rows)))
    return filters.spelled(ids)


def _scaled(own: Vector, held: Vector) -> bool:
    """Whether `held` is `own` divided by its length, whatever the last digits of that are."""
    length = float(np.linalg.norm(own.astype(np.float64)))
    if not np.isfinite(length) or not length:
        return False
    with np.errstate(over="ignore", under="ignore"):
        near: Any = np.float32(length) * (1 + np.arange(-ULPS, ULPS + 1) * 2.0**-24)
        lengths = np.concatenate([near.astype(np.float32).astype(np.float64), [length]])
        return bool(((own / lengths[:, None]).astype(np.float32) == held).all(axis=1).any())


def _unit(vector: Vector) -> Vector:
    found: Vector = vector / np.linalg.norm(vector)
    return found


def _close(wanted: Vector, held: Vector) -> bool:
    return bool(np.linalg.norm(wanted - held) <= TOLERANCE * np.linalg.norm(wanted))
