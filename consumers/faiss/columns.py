"""From records to vectors: takes the one column the index needs out of each record's JSON, whole batches at once.

Two sources. A vector column, in its wire form (`f32:`/`f64:` and base64) or as a JSON array: NULL makes a bare record,
and whatever cannot be compared (not finite, zero under cosine, another dimension, not a vector) is rejected. A text
column and an embedder: NULL and text without a single word make a bare record; unchanged text is not embedded again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import msgspec
import numpy as np

from cdc.envelope import float_bytes
from cdc.errors import MALFORMED, DecodeError
from consumers.embedder import Embedder
from consumers.faiss.arrays import Bytes, Digests, Ids, Vectors
from consumers.faiss.ledger import State
from consumers.faiss.metric import Metric, prepare
from consumers.store import Record, Rejected

FLOAT_BYTES = 4  # of a float32
DIGEST_BYTES = 8  # 64 bits: one wrong skip in 10^19 changes
GONE = object()  # a delete, found in the place of a column's value


class Staged:
    """Decoded records, by their place in the input: what becomes of each, and the vectors of those that have one."""

    def __init__(self, number: int) -> None:
        self.states: Bytes = np.full(number, State.LIVE, dtype=np.uint8)
        self.digests: Digests = np.zeros(number, dtype=np.uint64)
        self.unchanged: list[int] = []  # their vector stays as it is
        self.places: Ids = np.empty(0, dtype=np.int64)  # of the vectors
        self.vectors: Vectors = np.empty((0, 0), dtype=np.float32)
        self.rejected: list[Rejected] = []

    def reject(self, place: int, record: Record, reason: str, message: str) -> None:
        """It becomes a dead letter."""
        self.states[place] = State.REJECTED
        self.rejected.append(Rejected(record, reason, message))


class Source(Protocol):
    """Where vectors come from. `label`, with the pin, is what two snapshots must share to be of one kind."""

    label: str
    pin: str
    dimension: int | None

    def stage(self, records: Sequence[Record], states: Bytes, digests: Digests) -> Staged:
        """Decodes; `states` and `digests` are what is held of each record's key. Raises nothing for bad records."""


class VectorColumn:
    """A column that holds the vectors. `dimension` None: the first vector decides."""

    pin = ""

    def __init__(self, column: str, metric: Metric, dimension: int | None) -> None:
        self.label = f"column {column}"
        self.dimension = dimension
        self._metric: Metric = metric
        self._column = column
        self._value = reader_of(column, str | list[float | None] | None)

    def stage(self, records: Sequence[Record], states: Bytes, digests: Digests) -> Staged:
        """See Source; what is held does not matter here: the index compares."""
        staged = Staged(len(records))
        places: list[int] = []
        floats: list[bytes] = []
        value_of = self._value
        with np.errstate(over="ignore", invalid="ignore"):  # a float8 beyond float32 becomes infinite: rejected below
            for place, record in enumerate(records):
                try:
                    value = value_of(record.value)
                    if value.__class__ is str:
                        raw = float_bytes(value)
                    elif value is None or value is GONE:
                        staged.states[place] = State.BARE if value is None else State.DELETED
                        continue
                    else:
                        raw = np.array(value, dtype="<f4").tobytes()  # NULL in it becomes NaN
                except (DecodeError, *MALFORMED) as error:
                    staged.reject(place, record, "undecodable", f"column {self._column}: {error}")
                    continue
                size = len(raw) // FLOAT_BYTES
                if size != self.dimension and not self._adopt(size):
                    staged.reject(place, record, "dimension", self._other_dimension(size))
                    continue
                places.append(place)
                floats.append(raw)
        if floats:  # one array of the whole batch: an array a record costs more than its floats
            vectors = np.frombuffer(b"".join(floats), dtype="<f4").reshape(len(floats), -1)
            self._check(staged, records, np.array(places), vectors)
        return staged

    def _adopt(self, size: int) -> bool:
        if self.dimension is None and size:
            self.dimension = size
            return True
        return False

    def _other_dimension(self, size: int) -> str:
        return f"column {self._column}: the vector has {size} dimensions, the index {self.dimension}"

    def _check(self, staged: Staged, records: Sequence[Record], places: Ids, vectors: Vectors) -> None:
        prepared, nonfinite, zero = prepare(vectors, self._metric)
        bad = nonfinite | zero if self._metric == "cosine" else nonfinite
        for at in np.flatnonzero(bad).tolist():
            reason, why = ("nonfinite", "is not finite") if nonfinite[at] else ("zero", "is zero: it has no direction")
            staged.reject(int(places[at]), records[places[at]], reason, f"column {self._column}: the vector {why}")
        if staged.rejected:
            places, prepared = places[~bad], prepared[~bad]
        staged.places, staged.vectors = places, prepared


class TextColumn:
    """A column of text, and an embedder that reads it."""

    def __init__(self, column: str, metric: Metric, embedder: Embedder) -> None:
        self.label = f"{embedder.name} of column {column}"
        self.pin = embedder.pin
        self.dimension: int | None = embedder.dimension
        self._metric: Metric = metric
        self._column = column
        self._embedder = embedder
        self._value = reader_of(column, str | None)

    def stage(self, records: Sequence[Record], states: Bytes, digests: Digests) -> Staged:
        """See Source."""
        staged = Staged(len(records))
        places: list[int] = []
        texts: list[str] = []
        for place, record in enumerate(records):
            try:
                value = self._value(record.value)
            except MALFORMED as error:
                staged.reject(place, record, "undecodable", f"column {self._column}: {error}")
                continue
            if value is None or value is GONE:
                staged.states[place] = State.BARE if value is None else State.DELETED
                continue
            digest = text_digest(value)
            staged.digests[place] = digest
            if digest == digests[place] and states[place] in (State.LIVE, State.BARE):
                staged.states[place] = states[place]
                staged.unchanged.append(place)
            else:
                places.append(place)
                texts.append(value)
        if texts:
            self._embed(staged, np.array(places), texts)
        return staged

    def _embed(self, staged: Staged, places: Ids, texts: list[str]) -> None:
        vectors, nonfinite, zero = prepare(self._embedder.embed(texts), self._metric)
        bare = nonfinite | zero
        staged.states[places[bare]] = State.BARE
        staged.places, staged.vectors = places[~bare], vectors[~bare]


def text_digest(text: str) -> int:
    """64 bits of a text, the same in every process; never 0, which stands for no text."""
    raw = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
    return int.from_bytes(raw, "little") or 1


def reader_of(column: str, of: Any) -> Callable[[bytes | None], Any]:
    """A function from a record's value to the column's value or GONE, that looks at nothing else of the record.

    It raises one of MALFORMED when the column is missing or not of the type.
    """
    row = msgspec.defstruct("Row", [("value", of)], rename={"value": column}, gc=False)
    op = Literal["c", "u", "d", "r"]
    event = msgspec.defstruct("Event", [("op", op), ("after", row | None, None)], gc=False)
    decode = msgspec.json.Decoder(event).decode

    def value_of(value: bytes | None) -> Any:
        if value is None:
            return GONE
        change = decode(value)
        if change.op == "d":  # type: ignore[attr-defined]
            return GONE
        if change.after is None:  # type: ignore[attr-defined]
            raise msgspec.ValidationError("a change without a row")
        return change.after.value  # type: ignore[attr-defined]

    return value_of
