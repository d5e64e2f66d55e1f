"""What is in memory: the ledger of keys and the index of vectors, changed together so that they always agree.

One thread changes it (the writer); searches run in others, through the gate. Decoding happens outside the gate, and
changes go in by turns of a few hundred records, so that a search never waits for more than one turn; between two of
them the searches that run have precedence.

A record that cannot be held takes its key's old vector out of the index, since search must not answer with what is no
longer true; the key is remembered as rejected at that position. A record without a vector (NULL) is known, not indexed.
Of several records of a key in one batch only the newest is decoded: the others would be overwritten within the batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cdc import metrics
from cdc.errors import StoreError
from cdc.position import WIDTH, ZERO
from consumers.conditions import Where
from consumers.faiss.arrays import Bytes, Ids, Mask, Positions, Vectors
from consumers.faiss.columns import Source, Staged
from consumers.faiss.filtering import matching
from consumers.faiss.filters import Cells, Filters
from consumers.faiss.flat import FlatIndex
from consumers.faiss.gate import Gate
from consumers.faiss.index import VectorIndex
from consumers.faiss.ledger import Ledger, State
from consumers.faiss.metric import Metric, prepare
from consumers.faiss.precedence import Precedence
from consumers.store import Applied, Partition, Record, Version

STAGED = 256  # records decoded at once, 2 ms: enough for numpy to pay, few enough for a search to wait for
QUERIES = 16  # searched in one turn at the gate


class Hit(NamedTuple):
    """One answer of a search. `score`: see `consumers.faiss.metric`; position and version vector are the record's."""

    key: bytes
    score: float
    position: bytes
    vector: bytes

    @property
    def version(self) -> Version:
        """As the reading side of every store gives it."""
        return Version(self.position, self.vector)


class Content:
    """Ledger, index and the offsets they stand at. `offsets`: of our table; `passed`: of tables we hold nothing of;
    `logs`: Kafka's ids of the topics both belong to."""

    def __init__(self, source: Source, metric: Metric, label: str = "faiss") -> None:
        self.label = label  # of the metrics
        self.source = source
        self.metric: Metric = metric
        self.gate = Gate()
        self.precedence = Precedence()
        self.ledger = Ledger()
        self.filters = Filters(source.reader.filters)
        self.index: VectorIndex | None = None
        self.offsets: dict[Partition, int] = {}
        self.passed: dict[Partition, int] = {}
        self.logs: dict[Partition, str] = {}
        self.watermark = ZERO.encode()
        self.touched: set[int] | None = None  # ids changed while another index is trained

    # writer

    def apply(self, records: Sequence[Record]) -> Applied:
        """Makes records visible."""
        applied = Applied()
        positions = wire_positions(records)
        self.watermark = max(self.watermark, max(record.position for record in records))
        ids = self.ledger.look_up([record.key for record in records])
        fresh = self.ledger.newer(ids, positions)
        if not fresh.all():
            applied.stale = int((~fresh).sum()) - self._echoes(records, ids, positions, ~fresh)
        chosen = newest(records, np.flatnonzero(fresh), applied)
        for start in range(0, len(chosen), STAGED):
            places = chosen[start : start + STAGED]
            self._stage([records[i] for i in places.tolist()], ids[places], positions[places], applied)
            if len(places) == STAGED:
                self.precedence.give_way()
        self._tidy()
        self.measure()
        return applied

    def _tidy(self) -> None:
        """Texts of no row go: made anew beside, exchanged at the gate."""
        for name, column in self.filters.columns.items():
            if column.worn:
                fresh = column.fresh()
                with self.gate.writing():
                    self.filters.columns[name] = fresh

    def _echoes(self, records: Sequence[Record], ids: Ids, positions: Positions, old: Mask) -> int:
        """Tombstones that only follow the delete we hold: nothing stale about them."""
        places = [i for i in np.flatnonzero(old).tolist() if records[i].value is None and ids[i] >= 0]
        held = ids[places]
        same = (self.ledger.positions[held] == positions[places]) & (self.ledger.states[held] == State.DELETED)
        return int(same.sum())

    def _stage(self, records: list[Record], ids: Ids, positions: Positions, applied: Applied) -> None:
        known = np.maximum(ids, 0)
        states = np.where(ids >= 0, self.ledger.states[known], State.UNKNOWN).astype(np.uint8)
        staged = self.source.stage(records, states, self.ledger.digests[known])
        changed = self._changed(staged, ids, states)
        skipped = len(staged.unchanged) + len(staged.places) - len(changed)
        if skipped:
            metrics.INDEX_SKIPPED.labels(self.label).inc(skipped)
        deletes = int((staged.states == State.DELETED).sum())
        applied.rejected += staged.rejected
        applied.deletes += deletes
        applied.upserts += len(records) - deletes - len(staged.rejected)
        if len(changed) and self.index is None:
            self.index = FlatIndex(staged.vectors.shape[1], self.metric)
        if self.index is not None:
            self.index.reserve(len(changed))
        turn = self.index.turn if self.index is not None else STAGED
        vectors = staged.vectors[np.searchsorted(staged.places, changed)]
        cells = self._cells(staged)
        for start in range(0, len(records), turn):
            piece = slice(start, start + turn)
            inside = slice(*np.searchsorted(changed, (start, start + turn)).tolist())
            with self.gate.writing():
                rows = self.ledger.enter([record.key for record in records[piece]], ids[piece])
                self._put(rows[changed[inside] - start], vectors[inside])
                self._take_out(rows[(states[piece] == State.LIVE) & (staged.states[piece] != State.LIVE)])
                self.ledger.note(
                    rows, positions[piece], [r.vector for r in records[piece]], staged.states[piece],
                    staged.digests[piece],
                )  # fmt: skip
                self.filters.note(rows, [Cells(tags[piece], bits[piece]) for tags, bits in cells])

    def _cells(self, staged: Staged) -> list[Cells]:
        """What live rows have in the columns to filter by, nothing for all others."""
        number, live = len(staged.rows), np.flatnonzero(staged.states == State.LIVE)
        found = []
        rows = [staged.rows[place] for place in live.tolist()]
        for tags, bits in self.filters.encode(self.source.reader.filtered(rows)):
            cells = Cells(np.zeros(number, dtype=np.uint8), np.zeros(number, dtype=np.int64))
            cells.tags[live], cells.bits[live] = tags, bits
            found.append(cells)
        return found

    def _changed(self, staged: Staged, ids: Ids, states: Bytes) -> Ids:
        """The places whose vector is not in the index already."""
        places = staged.places
        held = np.flatnonzero(states[places] == State.LIVE)
        if not len(held) or self.index is None:
            return places
        keep = np.ones(len(places), dtype=np.bool_)
        keep[held] = ~self.index.same(ids[places[held]], staged.vectors[held])
        return places[keep]

    def _put(self, ids: Ids, vectors: Vectors) -> None:
        if len(ids) and self.index is not None:
            self.index.put(ids, vectors)
            self._touch(ids)

    def _take_out(self, ids: Ids) -> None:
        if len(ids) and self.index is not None:
            self.index.remove(ids)
            self._touch(ids)

    def _touch(self, ids: Ids) -> None:
        if self.touched is not None:
            self.touched.update(ids.tolist())

    def truncate(self, below: bytes) -> int:
        """Forgets every row older than `below`, and whatever older comes later. Returns how many were not deletes."""
        self.watermark = max(self.watermark, below)
        old = self.ledger.older(below)
        removed = int((self.ledger.states[old] != State.DELETED).sum())
        with self.gate.writing():
            self.ledger.floor = max(self.ledger.floor, below)
        self._forget(old)
        self.measure()
        return removed

    def prune(self, seconds: float, limit: int, covered: float) -> int:
        """Forgets tombstones that a snapshot durable since `covered` (Unix seconds) has; see the ledger."""
        dead = self.ledger.expired(time.time() - seconds, limit, covered)
        self._forget(dead)
        return len(dead)

    def _forget(self, ids: Ids) -> None:
        turn = self.index.turn if self.index is not None else STAGED
        for start in range(0, len(ids), turn):
            piece = ids[start : start + turn]
            with self.gate.writing():
                self._take_out(piece[self.ledger.states[piece] == State.LIVE])
                self.ledger.forget(piece)
                self.filters.forget(piece)

    def replace(self, index: VectorIndex) -> None:
        """Puts an index in the place of ours that was built from it while `touched` was kept."""
        if self.index is None or self.touched is None:
            raise StoreError("there is no index to replace", hint="report this: the training ran without a start")
        touched = np.array(sorted(self.touched), dtype=np.int64)
        live = self.ledger.states[touched] == State.LIVE
        if not live.all():
            index.remove(touched[~live])
        if live.any():
            index.reserve(int(live.sum()))
            index.put(touched[live], self.index.get(touched[live]))
        with self.gate.writing():
            self.index, self.touched = index, None
        self.measure()

    def measure(self) -> None:
        """Sets the gauges."""
        size, dead = (self.index.size, self.index.dead) if self.index is not None else (0, 0)
        metrics.INDEX_SIZE.labels(self.label).set(size)
        metrics.INDEX_DEAD.labels(self.label).set(dead / (size + dead) if dead else 0)

    # readers

    def search(self, queries: Vectors, k: int, nprobe: int, where: Where | None = None) -> list[list[Hit]]:
        """The k best of each query (all, when there are fewer), among the rows for which `where` holds. Raises
        StoreError for a query that cannot be compared, and for a condition that cannot."""
        prepared = self._queries(queries, k)
        started = time.perf_counter()
        found: list[list[Hit]] = []
        with self.precedence.searching():
            for at in range(0, len(prepared), QUERIES):
                found += self._some(prepared[at : at + QUERIES], k, nprobe, where)
        metrics.SEARCH_SECONDS.labels(self.label).observe(time.perf_counter() - started)
        return found

    def _queries(self, queries: Vectors, k: int) -> Vectors:
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if k < 1:
            raise StoreError(f"k is {k}", hint="ask for one hit or more")
        if queries.ndim != 2:
            raise StoreError(f"queries have {queries.ndim} axes", hint="send an array of shape (n, dimension)")
        dimension = self.index.dimension if self.index is not None else queries.shape[1]
        if queries.shape[1] != dimension:
            raise StoreError(
                f"the query has {queries.shape[1]} dimensions, the index {dimension}",
                hint="embed the query with what embedded the table",
            )
        prepared, nonfinite, zero = prepare(queries, self.metric)
        if nonfinite.any() or (self.metric == "cosine" and zero.any()):
            raise StoreError("a query vector is not finite, or is zero", hint="send finite numbers, not all zero")
        return prepared

    def _some(self, queries: Vectors, k: int, nprobe: int, where: Where | None) -> list[list[Hit]]:
        with self.gate.reading():
            found = self._nearest(queries, k, nprobe, where)
            if found is None:
                return [[] for _ in queries]
            scores, ids = found
            flat = ids.ravel()
            columns = (self.ledger.keys[flat], self.ledger.positions[flat], self.ledger.vectors[flat])
        width = ids.shape[1]
        keys, positions, vectors = (column.tolist() for column in columns)
        hits = list(map(Hit, keys, scores.ravel().tolist(), positions, vectors))
        return [hits[at : at + width] for at in range(0, len(hits), width)]

    def _nearest(self, queries: Vectors, k: int, nprobe: int, where: Where | None) -> tuple[Vectors, Ids] | None:
        """`(scores, ids)`, None when there is nothing to be found."""
        index = self.index
        if where is None:
            return index.search(queries, min(k, index.size), nprobe) if index is not None and index.size else None
        states = self.ledger.states
        chosen = matching(self.filters, where, len(states)) & (states == State.LIVE)
        number = int(chosen.sum())
        if index is None or not number:
            return None
        return index.search_among(queries, min(k, number), nprobe, chosen)

    def versions(self, keys: Sequence[bytes]) -> list[Version | None]:
        """What is held of each key."""
        with self.gate.reading():
            return [self.ledger.version(row) for row in self.ledger.look_up(keys).tolist()]

    def held(self) -> list[tuple[bytes, bytes]]:
        """`(key, position)` of every live record."""
        with self.gate.reading():
            return self.ledger.held()

    def vector_of(self, key: bytes) -> Vectors | None:
        """The vector held of a key, shape (d,), as the index keeps it; None when it has none."""
        with self.gate.reading():
            ids = self.ledger.look_up([key])
            if self.index is None or ids[0] < 0 or self.ledger.states[ids[0]] != State.LIVE:
                return None
            if not self.index.reached(ids)[0]:
                return None  # lost: verify says so
            vector: Vectors = self.index.get(ids)[0]
            return vector


def wire_positions(records: Sequence[Record]) -> Positions:
    """Positions as one array. Raises StoreError when one is not in its wire form."""
    joined = b"".join([record.position for record in records])
    if len(joined) != WIDTH * len(records):
        raise StoreError("a record's position is not in its wire form", hint=f"expected {WIDTH} hex digits")
    return np.frombuffer(joined, dtype=f"S{WIDTH}")


def newest(records: Sequence[Record], places: Ids, applied: Applied) -> Ids:
    """Of equal keys the place of the newest position; the older before it count as applied, those after it as stale."""
    last: dict[bytes, int] = {}
    chosen = places.tolist()
    for place in chosen:
        record = records[place]
        other = last.setdefault(record.key, place)
        if other == place:
            continue
        if record.position <= records[other].position:
            echo = record.value is None and record.position == records[other].position  # behind its delete
            applied.stale += not echo
            continue
        last[record.key] = place
        if records[other].value is None:
            applied.deletes += 1
        else:
            applied.upserts += 1
    return places if len(last) == len(chosen) else np.array(sorted(last.values()), dtype=np.int64)
