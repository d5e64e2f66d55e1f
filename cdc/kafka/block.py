"""Rows of a snapshot's chunk on their way into Kafka, as flat bytes: 20,000 rows are one object, not 120,000.

A row stands as three sizes (u32), then its key, its JSON without braces and the fragment of its version vector, if any.
A block is rows whose records differ in nothing else but their ordinal: it becomes records when it is
packed, by the compiled half (`_packing.pyx`) straight into Kafka's batches, without it by `records`.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cdc.kafka.batch import COMPILED, compiled

_SIZES = struct.Struct("=III")  # read by _packing.pyx, written by source/_runs.pyx too
Packed = tuple[bytes, bytes, Any]  # key, the row's JSON without its braces, the fragment of its version vector or None
Record = tuple[bytes, bytes | None, int, list[tuple[str, bytes]]]


def flat(row: Packed) -> bytes:
    """One row."""
    key, body, version = row
    return _SIZES.pack(len(key), len(body), len(version or b"")) + key + body + (version or b"")


def _kept(piece: bytes, skip: Collection[bytes]) -> tuple[bytes, int]:
    rows = [flat(row) for row in Rows([piece], 0, 0) if row[0] not in skip]
    return b"".join(rows), len(rows)


kept = compiled.kept if COMPILED else _kept


@dataclass(frozen=True, slots=True)
class Rows:
    """Pieces hold whole rows. `largest`: bytes of the longest key and body together, or more."""

    pieces: Sequence[bytes]
    count: int
    largest: int

    @classmethod
    def of(cls, rows: Iterable[Packed]) -> Rows:
        """From objects."""
        listed = list(rows)
        largest = max((len(key) + len(body) for key, body, _ in listed), default=0)
        return cls([b"".join(map(flat, listed))], len(listed), largest)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Packed]:
        for piece in self.pieces:
            at = 0
            while at < len(piece):
                key, body, version = _SIZES.unpack_from(piece, at)
                at += _SIZES.size
                yield (
                    piece[at : (at := at + key)],
                    piece[at : (at := at + body)],
                    piece[at : (at := at + version)] or None,
                )

    @property
    def nbytes(self) -> int:
        """Of the pieces."""
        return sum(map(len, self.pieces))

    def without(self, keys: Collection[bytes]) -> Rows:
        """Those whose key is not among `keys`."""
        if not keys:
            return self
        left = [kept(piece, keys) for piece in self.pieces]
        return Rows([piece for piece, _ in left], sum(count for _, count in left), self.largest)


@dataclass(frozen=True, slots=True)
class Block:
    """`rows` have no version vectors of their own. A value is head, body, tail, ordinal, end; the position lacks the
    ordinal's eight hex digits. `after` is the ordinal before the first row's."""

    rows: Rows
    after: int
    timestamp_ms: int
    head: bytes
    tail: bytes
    end: bytes
    names: tuple[str, str]  # headers of position and version vector
    position: bytes
    vector: bytes

    @property
    def nbytes(self) -> int:
        """Of all keys and values."""
        count = len(self.rows)
        frame = len(self.head) + len(self.tail) + len(self.end) - _SIZES.size
        return self.rows.nbytes + count * frame + _digits(self.after + 1, self.after + count)

    @property
    def largest(self) -> int:
        """No record's key and value have more bytes together."""
        frame = len(self.head) + len(self.tail) + len(self.end)
        return self.rows.largest + frame + len(b"%d" % (self.after + len(self.rows)))

    def records(self) -> Iterator[Record]:
        """All of them, in order."""
        for ordinal, (key, body, _) in enumerate(self.rows, self.after + 1):
            yield self.record(key, body, ordinal)

    def record(self, key: bytes, body: bytes, ordinal: int) -> Record:
        """One."""
        value = b"%b%b%b%d%b" % (self.head, body, self.tail, ordinal, self.end)
        position, vector = self.names
        return key, value, self.timestamp_ms, [(position, b"%b%08x" % (self.position, ordinal)), (vector, self.vector)]


def _digits(first: int, last: int) -> int:
    """Decimal digits of all numbers from `first` to `last`."""
    total, width = 0, len(str(first))
    while first <= last:
        upto = min(last, 10**width - 1)
        total += (upto - first + 1) * width
        first, width = upto + 1, width + 1
    return total
