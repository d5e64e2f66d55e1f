"""From records to vectors: takes the one column the index needs out of each record's JSON, whole batches at once.

Two sources. A vector column, in its wire form (`f32:`/`f64:` and base64) or as a JSON array: NULL makes a bare record,
and whatever cannot be compared (not finite, zero under cosine, another dimension, not a vector) is rejected. A text
column and an embedder: NULL and text without a single word make a bare record; unchanged text is not embedded again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from operator import attrgetter
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


class Staged:
    """Decoded records, by their place in the input: what becomes of each, and the vectors of those that have one."""

    def __init__(self, number: int) -> None:
        self.states: Bytes = np.full(number, State.LIVE, dtype=np.uint8)
        self.digests: Digests = np.zeros(number, dtype=np.uint64)
        self.rows: list[Any] = [None] * number  # what `Reader` read of those that are not deletes
        self.unchanged: list[int] = []  # their vector stays as it is
        self.places: Ids = np.empty(0, dtype=np.int64)  # of the vectors
        self.vectors: Vectors = np.empty((0, 0), dtype=np.float32)
        self.rejected: list[Rejected] = []

    def reject(self, place: int, record: Record, reason: str, message: str) -> None:
        """It becomes a dead letter."""
        self.states[place] = State.REJECTED
        self.rejected.append(Rejected(record, reason, message))


class Source(Protocol):
    """Where vectors come from. `label`, with the pin, is what two snapshots must share to be of one kind. `reader`
    reads the records, the columns to filter by too."""

    label: str
    pin: str
    dimension: int | None
    reader: Reader

    def stage(self, records: Sequence[Record], states: Bytes, digests: Digests) -> Staged:
        """Decodes; `states` and `digests` are what is held of each record's key. Raises nothing for bad records."""


class VectorColumn:
    """A column that holds the vectors. `dimension` None: the first vector decides."""

    pin = ""

    def __init__(self, column: str, metric: Metric, dimension: int | None, filters: Sequence[str] = ()) -> None:
        self.label = f"column {column}"
        self.dimension = dimension
        self._metric: Metric = metric
        self._column = column
        self.reader = Reader(column, str | list[float | None] | None, filters)

    def stage(self, records: Sequence[Record], states: Bytes, digests: Digests) -> Staged:
        """See Source; what is held does not matter here: the index compares."""
        staged = Staged(len(records))
        places: list[int] = []
        floats: list[bytes] = []
        read, rows = self.reader.read, staged.rows
        with np.errstate(over="ignore", invalid="ignore"):  # a float8 beyond float32 becomes infinite: rejected below
            for place, record in enumerate(records):
                try:
                    row = read(record.value)
                    if row is None:
                        staged.states[place] = State.DELETED
                        continue
                    rows[place], value = row, row.value
                    if value.__class__ is str:
                        raw = float_bytes(value)
                    elif value is None:
                        staged.states[place] = State.BARE
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

    def __init__(self, column: str, metric: Metric, embedder: Embedder, filters: Sequence[str] = ()) -> None:
        self.label = f"{embedder.name} of column {column}"
        self.pin = embedder.pin
        self.dimension: int | None = embedder.dimension
        self._metric: Metric = metric
        self._column = column
        self._embedder = embedder
        self.reader = Reader(column, str | None, filters)

    def stage(self, records: Sequence[Record], states: Bytes, digests: Digests) -> Staged:
        """See Source."""
        staged = Staged(len(records))
        places: list[int] = []
        texts: list[str] = []
        for place, record in enumerate(records):
            try:
                row = staged.rows[place] = self.reader.read(record.value)
            except MALFORMED as error:
                staged.reject(place, record, "undecodable", f"column {self._column}: {error}")
                continue
            if row is None or row.value is None:
                staged.states[place] = State.DELETED if row is None else State.BARE
                continue
            value = row.value
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


class Reader:
    """Reads a record's value: the column, of a type, as `value`, and the columns to filter by; nothing else of it."""

    def __init__(self, column: str, of: Any, filters: Sequence[str] = ()) -> None:
        self.filters = tuple(filters)
        places = {name: "value" if name == column else f"filter_{place}" for place, name in enumerate(filters)}
        others = {field: name for name, field in places.items() if field != "value"}
        fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [("value", of)]
        fields += [(field, Any, None) for field in others]
        row = msgspec.defstruct("Row", fields, rename={"value": column, **others}, gc=False)
        op = Literal["c", "u", "d", "r"]
        event = msgspec.defstruct("Event", [("op", op), ("after", row | None, None)], gc=False)
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(event).decode
        self._values = [attrgetter(field) for field in places.values()]

    def read(self, value: bytes | None) -> Any:
        """The row, None for a delete. Raises one of MALFORMED when the column is missing or not of the type."""
        if value is None:
            return None
        change = self._decode(value)
        if change.op == "d":
            return None
        if change.after is None:
            raise msgspec.ValidationError("a change without a row")
        return change.after

    def filtered(self, rows: Sequence[Any]) -> list[list[Any]]:
        """The values of the columns to filter by, a list a column, as JSON gives them; NULL where one is lacking."""
        return [list(map(value, rows)) for value in self._values]
