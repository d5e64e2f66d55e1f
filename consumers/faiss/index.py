"""What an index of vectors by id does; the exact one and the partitioned one fill it."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from consumers.faiss.arrays import Ids, Mask, Vectors

Kind = Literal["flat", "ivf"]


class VectorIndex(Protocol):
    """One thread changes it, inside the gate; only `reserve` may run while others search. Ids in a call differ."""

    kind: Kind
    dimension: int
    turn: int  # vectors to put in one turn at the gate (5 ms)

    @property
    def size(self) -> int:
        """Vectors it really holds."""

    @property
    def dead(self) -> int:
        """Slots whose vector is no longer live."""

    def reserve(self, more: int) -> None:
        """Makes room for so many more, so that `put` is short."""

    def put(self, ids: Ids, vectors: Vectors) -> None:
        """Inserts or overwrites."""

    def remove(self, ids: Ids) -> None:
        """Removes; ids that are not there are passed over."""

    def get(self, ids: Ids) -> Vectors:
        """Copies of vectors; every id must be there."""

    def same(self, ids: Ids, vectors: Vectors) -> Mask:
        """Which of these are held already, to the bit; every id must be there."""

    def search(self, queries: Vectors, k: int, nprobe: int) -> tuple[Vectors, Ids]:
        """`(scores, ids)`, each (n, k), best first; k must not exceed `size`, and every place is filled."""

    def dump(self) -> tuple[Ids, Vectors]:
        """All of it, copied."""

    def export(self) -> Any:
        """An independent native FAISS index with our ids, for writing."""
