"""Exact search among some of many vectors, in FAISS' own loops, without copying them."""

from __future__ import annotations

from typing import Any

import faiss as faiss_with_stubs
import numpy as np

from consumers.faiss.arrays import Ids, Vectors
from consumers.faiss.metric import Metric

faiss: Any = faiss_with_stubs  # its type stubs lack the loops over a subset


def nearest(queries: Vectors, vectors: Vectors, rows: Ids, k: int, metric: Metric) -> tuple[Vectors, Ids]:
    """`(scores, rows)` of the k best among these rows of `vectors` for each query, each (n, k), best first; k must not
    exceed the number of rows."""
    number, pointer = len(queries), faiss.swig_ptr
    scores, found = np.empty((number, k), dtype=np.float32), np.empty((number, k), dtype=np.int64)
    rows = np.ascontiguousarray(rows)
    search = faiss.knn_L2sqr_by_idx if metric == "l2" else faiss.knn_inner_products_by_idx
    same = 0  # stride: all queries have the same rows
    search(
        pointer(queries), pointer(vectors), pointer(rows), queries.shape[1], number, len(vectors), len(rows), k,
        pointer(scores), pointer(found), same,
    )  # fmt: skip
    return scores, found
