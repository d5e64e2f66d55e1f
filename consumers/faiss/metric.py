"""How vectors are compared, and which cannot be.

`cosine` keeps vectors at length 1 and compares by inner product; `ip` and `l2` keep them as they come. A score is the
cosine or the inner product (higher is better), for `l2` the squared Euclidean distance (lower is better).
FAISS takes NaN silently and lets a zero vector outrank negative similarities, so both are found here, before adding.
"""

from __future__ import annotations

from typing import Literal

import faiss
import numpy as np

from consumers.faiss.arrays import Mask, Vectors

Metric = Literal["cosine", "ip", "l2"]
SAFE_SQUARE = (1e-12, 1e30)  # squared lengths between these lose nothing in float32 (its range is 1e-38 to 3e38)


def faiss_metric(metric: Metric) -> int:
    """FAISS' constant."""
    return int(faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT)


def prepare(vectors: Vectors, metric: Metric) -> tuple[Vectors, Mask, Mask]:
    """`(vectors as the index keeps them, which are not finite, which are zero)`; the latter two must not be added.

    Not finite also means: so long that a product of two overflows float32.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors)
        odd = np.flatnonzero(~((squares > SAFE_SQUARE[0]) & (squares < SAFE_SQUARE[1])))
        lengths = np.sqrt(squares)
        if len(odd):
            precise = vectors[odd].astype(np.float64)
            lengths = lengths.astype(np.float64)
            lengths[odd] = np.sqrt(np.einsum("ij,ij->i", precise, precise))
        nonfinite: Mask = ~np.isfinite(lengths)
        if metric != "cosine":
            nonfinite |= lengths > np.sqrt(SAFE_SQUARE[1])
            return vectors, nonfinite, lengths == 0
        return (vectors / lengths[:, None]).astype(np.float32, copy=False), nonfinite, lengths == 0
