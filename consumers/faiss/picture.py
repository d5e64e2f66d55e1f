"""The exact index at one moment, without a copy: what a snapshot is written from while changes go on in its array.

Copy-on-write. A change first hands over the vectors that it is about to overwrite (`keep`), of those that the picture
has not passed on yet; what is passed on is the array with the kept ones in their places. So no moment of the index
costs a second copy of it, whose making and freeing hold up every thread of the process.

Two threads: the index's own keeps and overwrites, in that order; another one reads. It copies a piece first, however
torn, then puts in what was kept of it and marks it as passed on, in one step: a slot that was overwritten while it was
copied was kept before.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np

from consumers.faiss.arrays import Ids, Vectors

PIECE_BYTES = 1 << 20
NOWHERE = -1


class Picture:
    """`ids`, shape (n,), is the caller's own copy; of `vectors` the first n rows count, and rows of it may change."""

    def __init__(self, ids: Ids, vectors: Vectors) -> None:
        self.ids = ids
        self._vectors = vectors[: len(ids)]
        self._kept: Vectors = np.empty_like(self._vectors)  # in the order of keeping; what is not written costs nothing
        self._places = np.full(len(ids), NOWHERE, dtype=np.int64)  # by slot, in the above
        self._number = 0
        self._passed = 0  # slots before this one are passed on
        self._lock = threading.Lock()

    @property
    def dimension(self) -> int:
        """Of its vectors."""
        return int(self._vectors.shape[1])

    def keep(self, slots: Ids) -> None:
        """These are about to be overwritten; they differ."""
        with self._lock:
            slots = slots[(slots >= self._passed) & (slots < len(self.ids))]
            slots = slots[self._places[slots] == NOWHERE]
            end = self._number + len(slots)
            self._kept[self._number : end] = self._vectors[slots]
            self._places[slots] = np.arange(self._number, end)
            self._number = end

    def pieces(self) -> Iterator[Vectors]:
        """The vectors in order, about `PIECE_BYTES` at a time, once; a piece is void when the next is asked for."""
        rows = max(1, PIECE_BYTES // (self._vectors.itemsize * self.dimension))
        room = np.empty((rows, self.dimension), dtype=np.float32)
        for start in range(0, len(self.ids), rows):
            end = min(start + rows, len(self.ids))
            piece = room[: end - start]
            piece[:] = self._vectors[start:end]
            with self._lock:
                places = self._places[start:end]
                changed = np.flatnonzero(places != NOWHERE)
                piece[changed] = self._kept[places[changed]]
                self._passed = end
            yield piece
