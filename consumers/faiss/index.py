"""What an index of vectors by id does; the exact one and the partitioned one fill it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from consumers.faiss.arrays import Ids, Mask, Out, Vectors

Kind = Literal["flat", "ivf"]
Write = Callable[[Out], object]  # hands a file over, piece by piece


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

    def search_among(self, queries: Vectors, k: int, nprobe: int, chosen: Mask) -> tuple[Vectors, Ids]:
        """The same among the ids for which `chosen` (by id) is true; fewer than k only when fewer of them are there."""

    def ids(self) -> Ids:
        """What searches can answer with, copied; none twice, unless the index is damaged."""

    def reached(self, ids: Ids) -> Mask:
        """Whether `get` would give the vector that searches find under the id."""

    def drop(self, ids: Ids) -> None:
        """Removes every vector under these ids however damaged the index is, and makes its tables anew; takes long."""

    def dump(self) -> tuple[Ids, Vectors]:
        """All of it, copied."""

    def export(self) -> Write:
        """A native FAISS file with our ids, of this moment, whatever changes later: another thread may write it, once.
        It is let go of when what this returns is."""
