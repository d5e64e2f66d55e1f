"""Checksums over what the index really holds, so that verify need not fetch every vector.

They are made of the vectors in the index itself, never of anything noted when they were written, and of the columns
that searches filter by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from consumers.faiss.arrays import Ids, Vectors
from consumers.faiss.content import Content
from consumers.faiss.index import VectorIndex
from consumers.faiss.ledger import State

DIGEST_BYTES = 16  # of BLAKE2b
_SHOWN = (State.LIVE, State.BARE)


def text_of(state: int, vector: Vectors | None, version: bytes, filters: bytes) -> bytes:
    """What the checksum of a record is made of: its state, its float32 in little-endian bytes, its version vector, and
    what `Filters.spelled` says of a live one."""
    if state not in _SHOWN:
        return b"-"
    floats = b"" if vector is None else vector.astype("<f4", copy=False).tobytes()
    return b"%d" % state + floats + version + filters


def digests(content: Content, keys: Sequence[bytes], *, versions: bool, each: bool, vectors: bool = True) -> list[str]:
    """BLAKE2b in hex of what is held of the keys, one of all or one of each. Holds the gate while it copies."""
    with content.gate.reading():
        ledger = content.ledger
        ids = ledger.look_up(keys)
        known = np.maximum(ids, 0)
        states = np.where(ids >= 0, ledger.states[known], State.UNKNOWN)
        live = np.flatnonzero(states == State.LIVE)
        found = _held(content.index, ids[live]) if vectors else [None] * len(live)
        filters = content.filters.spelled(ids[live])
        noted = ledger.vectors[known].tolist() if versions else [b""] * len(keys)
    places = dict(zip(live.tolist(), zip(found, filters, strict=True), strict=True))
    nothing = (None, b"")
    texts = []
    for at, state in enumerate(states.tolist()):
        vector, values = places.get(at, nothing)
        texts.append(text_of(state, vector, noted[at] or b"", values))
    if each:
        return [_digest(text) for text in texts]
    return [_digest(b"".join(texts))]


def stamps(content: Content, keys: Sequence[bytes]) -> list[bytes | None]:
    """`position|version vector` of live records, None for others."""
    with content.gate.reading():
        ledger = content.ledger
        ids = ledger.look_up(keys)
        known = np.maximum(ids, 0)
        shown = (ids >= 0) & np.isin(ledger.states[known], _SHOWN)
        positions, vectors = ledger.positions[known].tolist(), ledger.vectors[known].tolist()
    rows = zip(shown.tolist(), positions, vectors, strict=True)
    return [b"%b|%b" % (position, vector) if there else None for there, position, vector in rows]


def _held(index: VectorIndex | None, ids: Ids) -> Vectors:
    """Shape (n, d); NaN where the ledger says that there is a vector, and the index has none."""
    if index is None:
        return np.full((len(ids), 0), np.nan, dtype=np.float32)
    there = index.reached(ids)
    if there.all():
        return index.get(ids)
    found = np.full((len(ids), index.dimension), np.nan, dtype=np.float32)
    found[there] = index.get(ids[there])
    return found


def _digest(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES).hexdigest()
