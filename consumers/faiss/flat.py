"""The exact index: vectors side by side in one array, each in a slot.

An update overwrites its slot, a delete moves the last vector into the hole, so there is never a dead slot and never a
scan. FAISS' own exhaustive search (`faiss.knn`, what IndexFlat calls too) runs over our array: an IndexFlat would own
its memory and move it when it grows, under the feet of a search or at the cost of one long turn; ours grows beside
and is exchanged by one assignment. On disk it is a native IndexIDMap over IndexFlat, written from a picture (`picture`)
while changes go on.
"""

from __future__ import annotations

from weakref import WeakSet

import faiss
import numpy as np

from consumers.faiss.arrays import Ids, Mask, Vectors
from consumers.faiss.index import Kind, Write
from consumers.faiss.metric import Metric, faiss_metric
from consumers.faiss.native import write_flat
from consumers.faiss.picture import Picture
from consumers.faiss.subset import nearest

FIRST_SLOTS = 1024
GROWTH = 4  # memory that nothing was written to costs nothing, and to move vectors does: a third of them, all in all
ABSENT = -1


class FlatIndex:
    """Exact search over up to a few hundred thousand vectors."""

    kind: Kind = "flat"
    turn = 512  # 0.8 MB at 384 dimensions: well under a millisecond
    dead = 0

    def __init__(self, dimension: int, metric: Metric, slots: int = FIRST_SLOTS) -> None:
        self.dimension = dimension
        self._metric = metric
        self._vectors: Vectors = np.empty((slots, dimension), dtype=np.float32)
        self._ids: Ids = np.empty(slots, dtype=np.int64)  # by slot
        self._slots: Ids = np.full(FIRST_SLOTS, ABSENT, dtype=np.int64)  # by id
        self._size = 0
        self._pictures: WeakSet[Picture] = WeakSet()  # that somebody still writes

    @property
    def size(self) -> int:
        """Vectors it holds."""
        return self._size

    def reserve(self, more: int) -> None:
        """Copies into a larger array when need be; searches go on in the old one meanwhile."""
        need = self._size + more
        if need <= len(self._vectors):
            return
        room = max(need, FIRST_SLOTS, len(self._vectors) * GROWTH)
        vectors = np.empty((room, self.dimension), dtype=np.float32)
        ids = np.empty(room, dtype=np.int64)
        vectors[: self._size] = self._vectors[: self._size]
        ids[: self._size] = self._ids[: self._size]
        self._vectors, self._ids = vectors, ids

    def put(self, ids: Ids, vectors: Vectors) -> None:
        """See VectorIndex."""
        self._number(ids)
        slots = self._slots[ids]
        new = slots == ABSENT
        added = int(new.sum())
        if added:
            self.reserve(added)
            slots[new] = np.arange(self._size, self._size + added)
            self._slots[ids[new]] = slots[new]
            self._ids[slots[new]] = ids[new]
            self._size += added
        self._overwrite(slots, vectors)

    def _overwrite(self, slots: Ids, vectors: Vectors) -> None:
        for picture in self._pictures:
            picture.keep(slots)
        self._vectors[slots] = vectors

    def _number(self, ids: Ids) -> None:
        """Room for the largest id."""
        need = int(ids.max(initial=0)) + 1
        if need > len(self._slots):
            slots = np.full(max(need, len(self._slots) * GROWTH), ABSENT, dtype=np.int64)
            slots[: len(self._slots)] = self._slots
            self._slots = slots

    def remove(self, ids: Ids) -> None:
        """The last vectors move into the holes."""
        self._number(ids)
        holes = self._slots[ids]
        present = holes != ABSENT
        ids, holes = ids[present], holes[present]
        self._slots[ids] = ABSENT
        size = self._size - len(ids)
        tail = np.arange(size, self._size)
        movers = tail[self._slots[self._ids[tail]] != ABSENT]
        targets = holes[holes < size]
        self._overwrite(targets, self._vectors[movers])
        self._ids[targets] = self._ids[movers]
        self._slots[self._ids[targets]] = targets
        self._size = size

    def get(self, ids: Ids) -> Vectors:
        """See VectorIndex."""
        return self._vectors[self._slots[ids]]

    def same(self, ids: Ids, vectors: Vectors) -> Mask:
        """See VectorIndex."""
        equal: Mask = (self.get(ids) == vectors).all(axis=1)
        return equal

    def search(self, queries: Vectors, k: int, nprobe: int) -> tuple[Vectors, Ids]:
        """Exact; `nprobe` is of no use here."""
        scores, slots = faiss.knn(queries, self._vectors[: self._size], k, metric=faiss_metric(self._metric))
        return scores, self._ids[slots]

    def search_among(self, queries: Vectors, k: int, nprobe: int, chosen: Mask) -> tuple[Vectors, Ids]:
        """See VectorIndex; exact."""
        slots = np.flatnonzero(chosen[self._ids[: self._size]])  # in the order of the memory
        scores, found = nearest(queries, self._vectors, slots, min(k, len(slots)), self._metric)
        return scores, self._ids[found]

    def ids(self) -> Ids:
        """See VectorIndex."""
        return self._ids[: self._size].copy()

    def reached(self, ids: Ids) -> Mask:
        """See VectorIndex."""
        slots = np.full(len(ids), ABSENT)
        known = ids < len(self._slots)
        slots[known] = self._slots[ids[known]]
        found: Mask = (slots >= 0) & (slots < self._size)
        found[found] = self._ids[slots[found]] == ids[found]
        return found

    def drop(self, ids: Ids) -> None:
        """See VectorIndex."""
        held, vectors = self.dump()
        keep = ~np.isin(held, ids)
        self._slots[:], self._size = ABSENT, 0
        self.put(held[keep], vectors[keep])

    def dump(self) -> tuple[Ids, Vectors]:
        """See VectorIndex."""
        return self._ids[: self._size].copy(), self._vectors[: self._size].copy()

    def export(self) -> Write:
        """IndexIDMap over IndexFlat. Copies the ids alone."""
        picture = Picture(self._ids[: self._size].copy(), self._vectors)
        self._pictures.add(picture)
        return lambda out: write_flat(picture, self._metric, out)


def flat_of(ids: Ids, vectors: Vectors, metric: Metric) -> FlatIndex:
    """An index of these vectors, shape (n, d); ids differ."""
    index = FlatIndex(vectors.shape[1], metric, max(1, len(ids)))  # no more than a file's own size
    index.put(ids, vectors)
    return index
