"""Whether a store holds a row's content: Redis field by field, the index by its vector and version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from cdc.commands.index_client import RemoteIndex
from cdc.config import Config
from cdc.errors import DecodeError
from cdc.position import ZERO
from cdc.version import decode_vector
from consumers.embedder import embedder_from
from consumers.faiss.columns import Source, TextColumn, VectorColumn
from consumers.faiss.ledger import State
from consumers.redis import RedisStore, keys_for
from consumers.redis.rows import RESERVED, RowEncoder
from consumers.store import Record

HEAD = 7  # what RowEncoder puts before the values
STRING_HEADER = 5  # of MessagePack's str 32, which wraps a vector
TOLERANCE = 1e-4  # of a vector's length: float32 rounding of sums in another order

Pairs = Sequence[tuple[bytes, bytes]]  # topic key, row as JSON
_ROW = msgspec.json.Decoder(dict[str, msgspec.Raw])


class RedisContent:
    """Every column of a row against the fields of its hash."""

    def __init__(self, config: Config, schema: str, table: str, store: RedisStore) -> None:
        self._config, self._table, self._store = config, (schema, table), store
        self._encoder = RowEncoder(f"{schema}.{table}", config.table(schema, table), config.redis.vectors, "")

    async def matches(self, pairs: Pairs) -> list[bool]:
        """Raises ConnectError, StoreError."""
        commands = [("HGETALL", keys_for(self._config, *self._table, key)) for key, _row in pairs]
        replies = await self._store.link.pipeline(commands) if commands else []
        return [self.fields(*pair) == _fields(reply) for pair, reply in zip(pairs, replies, strict=True)]

    def fields(self, key: bytes, row: bytes) -> dict[bytes, bytes]:
        """What the hash has to hold."""
        encoded = self._encoder.encode(_record(key, row), None)
        columns, values = self._encoder.shapes[encoded[2] - 1], encoded[HEAD:]
        return {c.encode(): _bytes(value) for c, value in zip(columns, values, strict=True) if value is not None}


class IndexContent:
    """The vector a row has to have against the one the index holds, and its version vector where it has a column."""

    def __init__(self, config: Config, schema: str, table: str, index: RemoteIndex) -> None:
        self._table, self._index = (schema, table), index
        self._version = config.table(schema, table).version_column
        self._source = _source(config, schema, table)

    async def matches(self, pairs: Pairs) -> list[bool]:
        """Raises ConnectError, StoreError."""
        held = await self._index.records(*self._table, [key for key, _row in pairs])
        sizes = [vector.size for _version, vector in held if vector is not None]
        if self._source.dimension is None and sizes:
            self._source.dimension = sizes[0]
        expected = self._expected(pairs)
        return [
            version is not None and self._same_version(row, version.vector) and _close(wanted, vector)
            for (_key, row), (version, vector), wanted in zip(pairs, held, expected, strict=True)
        ]

    def _expected(self, pairs: Pairs) -> list[Any]:
        number = len(pairs)
        unknown = np.full(number, State.UNKNOWN, dtype=np.uint8)
        staged = self._source.stage([_record(*pair) for pair in pairs], unknown, np.zeros(number, dtype=np.uint64))
        vectors: list[Any] = [None] * number
        for place, vector in zip(staged.places.tolist(), staged.vectors, strict=True):
            vectors[place] = vector
        return vectors

    def _same_version(self, row: bytes, held: bytes) -> bool:
        wanted = row_vector(row, self._version)
        return wanted is None or wanted == decode_vector(held)


def row_vector(row: bytes, column: str | None) -> dict[str, int] | None:
    """The version vector a row brings itself; None when it has none that can be read."""
    if column is None:
        return None
    try:
        raw = _ROW.decode(row).get(column)
        return None if raw is None else decode_vector(msgspec.json.decode(raw, type=str))
    except (msgspec.DecodeError, DecodeError):
        return None  # the reader then travels with the default, counted there


def _source(config: Config, schema: str, table: str) -> Source:
    settings = config.table(schema, table)
    if settings.vector:
        return VectorColumn(settings.vector, config.faiss.metric, config.faiss.dimension)
    return TextColumn(settings.text or "", config.faiss.metric, embedder_from(config.embedder))


def _record(key: bytes, row: bytes) -> Record:
    value = b'{"op":"r","source":{"ts_us":0},"after":%b}' % row
    return Record(key, value, ZERO.encode(), b"{}", 0, 0)


def _fields(reply: Any) -> dict[bytes, bytes] | None:
    if not isinstance(reply, dict):
        return None  # no hash of ours
    return {name: value for name, value in reply.items() if name.decode(errors="replace") not in RESERVED}


def _bytes(value: Any) -> bytes:
    """A field as Redis holds it."""
    return bytes(value)[STRING_HEADER:] if isinstance(value, msgspec.Raw) else str(value).encode()


def _close(wanted: Any, held: Any) -> bool:
    if wanted is None or held is None:
        return wanted is None and held is None
    if wanted.shape != held.shape:
        return False
    return bool(np.linalg.norm(wanted - held) <= TOLERANCE * np.linalg.norm(wanted))
