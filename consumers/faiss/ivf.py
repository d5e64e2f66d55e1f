"""The partitioned index for more vectors than an exhaustive search can take: FAISS' IVFFlat with a hash table by id.

Its partitions are learned from the vectors that were live then. Changes wear them out, so it says when it has
`drifted`: far more vectors than it was trained for, or partitions far less even than they were.
A search looks into `nprobe` partitions, and into more when those hold fewer than k vectors.
"""

from __future__ import annotations

import math
from typing import Any

import faiss as faiss_with_stubs
import numpy as np

from consumers.faiss.arrays import Ids, Mask, Vectors
from consumers.faiss.index import Kind, Write
from consumers.faiss.metric import Metric, faiss_metric
from consumers.faiss.picture import PIECE_BYTES
from consumers.faiss.subset import nearest

faiss: Any = faiss_with_stubs  # its type stubs lack the hash table and the search parameters
LISTS_PER_ROOT = 4  # partitions = 4·√n, the rule of thumb of FAISS' guidelines for choosing an index
LEAST_POINTS = 39  # training points a partition below which FAISS calls the clustering poor
LIST_BITS, LIST_MASK = 32, (1 << 32) - 1  # how FAISS packs a list and a place within it (DirectMap.h, lo_build)
# Chosen vectors up to which comparing each of them is cheaper than searching partitions for them: of 100,000 of 384
# dimensions 2,000 take 1.3 ms against 1.6, 5,000 take 3.6 ms against 1.3.
EXACT = 3_000
MOST_POINTS = 64  # more do not improve it noticeably, and training time grows with them


class IvfIndex:
    """Approximate search; see the module."""

    kind: Kind = "ivf"
    turn = 256  # about 90k puts a second: 3 ms
    dead = 0  # removal is real

    def __init__(self, native: Any, trained_on: int, evenness: float) -> None:
        self._native = native
        self.dimension: int = native.d
        self._metric: Metric = "l2" if native.metric_type == faiss.METRIC_L2 else "ip"
        self.trained_on = trained_on
        self.evenness = evenness  # imbalance factor right after training; 1 is even

    @property
    def size(self) -> int:
        """Vectors it holds."""
        return int(self._native.ntotal)

    @property
    def imbalance(self) -> float:
        """FAISS' imbalance factor: how much more work a search has than with even partitions."""
        return float(self._native.invlists.imbalance_factor())

    def drifted(self, growth: float, imbalance: float) -> str | None:
        """Why it ought to be trained again, None while it is fine. Both bounds are factors since training."""
        if self.size > growth * self.trained_on:
            return "growth"
        return "imbalance" if self.imbalance > imbalance * self.evenness else None

    def reserve(self, more: int) -> None:
        """Its lists grow one by one; nothing to prepare."""

    def put(self, ids: Ids, vectors: Vectors) -> None:
        """FAISS has no upsert: what is there goes first."""
        self._native.remove_ids(faiss.IDSelectorArray(ids))
        self._native.add_with_ids(vectors, ids)

    def remove(self, ids: Ids) -> None:
        """See VectorIndex."""
        self._native.remove_ids(faiss.IDSelectorArray(ids))

    def get(self, ids: Ids) -> Vectors:
        """See VectorIndex."""
        if not len(ids):
            return np.empty((0, self.dimension), dtype=np.float32)
        found: Vectors = self._native.reconstruct_batch(ids)
        return found

    def same(self, ids: Ids, vectors: Vectors) -> Mask:
        """See VectorIndex."""
        try:
            equal: Mask = (self.get(ids) == vectors).all(axis=1)
        except RuntimeError:  # FAISS' for an id that is not there: damage, which the next `put` ends
            equal = self.reached(ids)
            equal[equal] = (self.get(ids[equal]) == vectors[equal]).all(axis=1)
        return equal

    def search(self, queries: Vectors, k: int, nprobe: int) -> tuple[Vectors, Ids]:
        """Looks into twice as many partitions until every place is filled."""
        return self._search(queries, k, nprobe, None)

    def search_among(self, queries: Vectors, k: int, nprobe: int, chosen: Mask) -> tuple[Vectors, Ids]:
        """Exact up to EXACT vectors; of more as many are compared with the query as without a filter."""
        ids = np.flatnonzero(chosen)
        if len(ids) <= EXACT and (vectors := self._all(ids)) is not None:
            scores, rows = nearest(queries, vectors, np.arange(len(ids)), min(k, len(ids)), self._metric)
            return scores, ids[rows]
        selector = faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))
        scores, found = self._search(queries, k, math.ceil(nprobe * self.size / max(1, len(ids))), selector)
        there = slice(int((found >= 0).sum(axis=1).min()))
        return scores[:, there], found[:, there]

    def _all(self, ids: Ids) -> Vectors | None:
        """None when one of them is not there, which only a damaged index brings about."""
        try:
            return self.get(ids)
        except RuntimeError:  # FAISS' for an id that is not there
            return None

    def _search(self, queries: Vectors, k: int, nprobe: int, selector: Any) -> tuple[Vectors, Ids]:
        while True:
            nprobe = min(nprobe, self._native.nlist)
            parameters = faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)
            scores, ids = self._native.search(queries, k, params=parameters)
            if nprobe == self._native.nlist or (ids >= 0).all():
                return scores, ids
            nprobe *= 2

    def ids(self) -> Ids:
        """See VectorIndex."""
        lists = self._native.invlists
        sizes = [lists.list_size(number) for number in range(lists.nlist)]
        ids = [faiss.rev_swig_ptr(lists.get_ids(number), size).copy() for number, size in enumerate(sizes) if size]
        return np.concatenate(ids) if ids else np.empty(0, dtype=np.int64)

    def reached(self, ids: Ids) -> Mask:
        """See VectorIndex."""
        return np.fromiter(map(self._reached, ids.tolist()), np.bool_, len(ids))

    def _reached(self, number: int) -> bool:
        try:
            place = self._native.direct_map.get(number)
        except RuntimeError:  # FAISS' for an id that is not there
            return False
        lists = self._native.invlists
        return bool(lists.get_single_id(place >> LIST_BITS, place & LIST_MASK) == number)

    def drop(self, ids: Ids) -> None:
        """See VectorIndex."""
        self._native.set_direct_map_type(faiss.DirectMap.NoMap)
        self._native.remove_ids(faiss.IDSelectorArray(ids))
        self._native.set_direct_map_type(faiss.DirectMap.Hashtable)

    def dump(self) -> tuple[Ids, Vectors]:
        """See VectorIndex."""
        found = self.ids()
        return found, self.get(found)

    def export(self) -> Write:
        """A clone without the hash table, which is made from the ids again."""
        clone = faiss.clone_index(self._native)
        clone.set_direct_map_type(faiss.DirectMap.NoMap)
        return lambda out: faiss.write_index(clone, faiss.PyCallbackIOWriter(out, PIECE_BYTES))


def train(ids: Ids, vectors: Vectors, metric: Metric) -> IvfIndex:
    """Learns partitions from these vectors and holds them. Takes minutes for millions: call it in the background."""
    number, dimension = vectors.shape
    lists = max(1, min(int(LISTS_PER_ROOT * math.sqrt(number)), number // LEAST_POINTS))
    quantizer = faiss.IndexFlat(dimension, faiss_metric(metric))
    native = faiss.IndexIVFFlat(quantizer, dimension, lists, faiss_metric(metric))
    native.cp.max_points_per_centroid = MOST_POINTS
    native.cp.min_points_per_centroid = 1  # FAISS else writes a warning to stderr for tiny indexes
    native.train(vectors)
    native.set_direct_map_type(faiss.DirectMap.Hashtable)
    native.add_with_ids(vectors, ids)
    return IvfIndex(native, number, float(native.invlists.imbalance_factor()))


def ivf_from(native: Any, trained_on: int, evenness: float) -> IvfIndex:
    """The inverse of `export`, for an index whose ids differ. Raises ValueError for another kind of index."""
    if not isinstance(native, faiss.IndexIVFFlat):
        raise ValueError(f"a {type(native).__name__} is not an IndexIVFFlat")
    native.set_direct_map_type(faiss.DirectMap.Hashtable)
    return IvfIndex(native, trained_on, evenness)
