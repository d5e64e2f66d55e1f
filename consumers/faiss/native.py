"""FAISS' file format, as far as we write it: exact indexes written, and all read byte by byte before FAISS sees them.

FAISS' own reader trusts what it reads: a size in a file is allocated, a type nobody expects is built, ids and places in
a hash table are used as they are. So a file is walked here to its last byte first. It must be exactly of the form that
`export` writes; every size in it must be the one that follows from the manifest, or fit what is left of the file; ids
must be the ledger's. Nothing is allocated beyond the file's own size, and all errors are ValueErrors.

The format: faiss/impl/index_write.cpp. Little-endian; `size` is a uint64 count.

    IndexIDMap    "IxMp" header flat size ids
    IndexFlat     "IxFI" or "IxF2" header size(in floats) floats
    IndexIVFFlat  "IwFl" header nlist nprobe flat map=0 0 "ilar" nlist code_size form, for each list: codes ids
    header        d:int32 ntotal:int64 2×int64 trained:bool metric:int32
    form          "full" size sizes, or "sprs" size (list, size)…
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from consumers.faiss.arrays import Bytes, Ids, Out, Vectors
from consumers.faiss.metric import Metric, faiss_metric
from consumers.faiss.picture import Picture

_HEADER = struct.Struct("<iqqq?i")
_SIZE = struct.Struct("<Q")
ID_BYTES, FLOAT_BYTES = 8, 4
_UNUSED = 1 << 20  # what FAISS writes in two places of a header that nobody reads


class Walk:
    """A place in a file that is mapped, not read. Everything it hands out lies inside."""

    def __init__(self, path: Path) -> None:
        self._data: Bytes = np.memmap(path, dtype=np.uint8, mode="r")
        self._at = 0

    def take(self, size: int) -> Bytes:
        """The next bytes, uncopied. Raises ValueError beyond the end."""
        if not 0 <= size <= len(self._data) - self._at:
            raise ValueError(f"{size} bytes are asked for at {self._at} of {len(self._data)}")
        self._at += size
        return self._data[self._at - size : self._at]

    def expect(self, word: bytes) -> None:
        """The next bytes must be these."""
        if self.take(len(word)).tobytes() != word:
            raise ValueError(f"{word!r} is not at {self._at - len(word)}")

    def size(self) -> int:
        """The next count."""
        return int(_SIZE.unpack(self.take(_SIZE.size).tobytes())[0])

    def counted(self, number: int) -> None:
        """The next count must be this one."""
        found = self.size()
        if found != number:
            raise ValueError(f"a count is {found} where {number} follow")

    def header(self, dimension: int, vectors: int, metric: Metric) -> None:
        """What every index begins with."""
        found_dimension, total, _, _, trained, kind = _HEADER.unpack(self.take(_HEADER.size).tobytes())
        if (found_dimension, total, trained, kind) != (dimension, vectors, True, faiss_metric(metric)):
            raise ValueError(f"an index of {total} vectors of {found_dimension} dimensions is not the manifest's")

    def flat(self, dimension: int, vectors: int, metric: Metric) -> Vectors:
        """An IndexFlat, shape (vectors, dimension), uncopied."""
        self.expect(_flat_word(metric))
        self.header(dimension, vectors, metric)
        self.counted(vectors * dimension)
        return self.floats(vectors, dimension)

    def floats(self, rows: int, dimension: int) -> Vectors:
        """Vectors. Raises ValueError for one that is not finite."""
        found: Vectors = self.take(rows * dimension * FLOAT_BYTES).view("<f4").reshape(rows, dimension)
        if not np.isfinite(found).all():
            raise ValueError("a vector is not finite")
        return found

    def ids(self, number: int) -> Ids:
        """Ids, copied."""
        return self.take(number * ID_BYTES).view("<i8").astype(np.int64)

    def end(self) -> None:
        """Nothing may follow."""
        if self._at != len(self._data):
            raise ValueError(f"{len(self._data) - self._at} bytes too many")


def write_flat(picture: Picture, metric: Metric, out: Out) -> None:
    """An IndexIDMap over an IndexFlat, byte for byte as FAISS would write it."""
    number, dimension = len(picture.ids), picture.dimension
    header = _HEADER.pack(dimension, number, _UNUSED, _UNUSED, True, faiss_metric(metric))
    out(b"IxMp" + header + _flat_word(metric) + header + _SIZE.pack(number * dimension))
    for piece in picture.pieces():
        out(piece.astype("<f4", copy=False).data.cast("B"))
    out(_SIZE.pack(number))
    out(picture.ids.astype("<i8", copy=False).tobytes())


def _flat_word(metric: Metric) -> bytes:
    return b"IxF2" if metric == "l2" else b"IxFI"


def read_flat(path: Path, dimension: int, vectors: int, metric: Metric) -> tuple[Ids, Vectors]:
    """An IndexIDMap over an IndexFlat, without FAISS. Raises ValueError, OSError."""
    walk = Walk(path)
    walk.expect(b"IxMp")
    walk.header(dimension, vectors, metric)
    found = walk.flat(dimension, vectors, metric)
    walk.counted(vectors)
    ids = walk.ids(vectors)
    walk.end()
    return ids, found


def check_ivf(path: Path, dimension: int, vectors: int, metric: Metric) -> Ids:
    """The ids of an IndexIVFFlat that FAISS may read now. Raises ValueError, OSError."""
    walk = Walk(path)
    walk.expect(b"IwFl")
    walk.header(dimension, vectors, metric)
    lists = walk.size()
    walk.size()  # nprobe, which every search sets anew
    walk.flat(dimension, lists, metric)  # the centroids are there, so `lists` is no invention
    walk.expect(b"\0")  # no hash table: it is made from the ids
    walk.counted(0)
    walk.expect(b"ilar")
    walk.counted(lists)
    walk.counted(dimension * FLOAT_BYTES)
    ids = [_list(walk, size, dimension) for size in _sizes(walk, lists) if size]
    walk.end()
    found = np.concatenate(ids) if ids else np.empty(0, dtype=np.int64)
    if len(found) != vectors:
        raise ValueError(f"the partitions hold {len(found)} vectors, the manifest says {vectors}")
    return found


def _list(walk: Walk, size: int, dimension: int) -> Ids:
    walk.floats(size, dimension)
    return walk.ids(size)


def _sizes(walk: Walk, lists: int) -> list[int]:
    """The size of each partition that follows."""
    form = walk.take(4).tobytes()
    if form == b"full":
        walk.counted(lists)
        sizes: list[int] = walk.take(lists * _SIZE.size).view("<u8").tolist()
        return sizes
    if form != b"sprs":
        raise ValueError(f"partitions in the form {form!r}")
    pairs = walk.take(walk.size() * _SIZE.size).view("<u8").reshape(-1, 2)
    numbers = pairs[:, 0]
    if len(numbers) and (numbers[-1] >= lists or (numbers[1:] <= numbers[:-1]).any()):
        raise ValueError("partitions are not in order")
    found: list[int] = pairs[:, 1].tolist()
    return found
