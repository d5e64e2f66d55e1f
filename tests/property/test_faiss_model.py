"""After any mix of changes, in any order and batch, with duplicates, truncates, restarts and exchanged indexes, the
index holds what a dictionary holds, and a search finds what comparing with every vector finds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consumers.faiss.columns import VectorColumn
from consumers.faiss.content import Content
from consumers.faiss.metric import Metric
from consumers.faiss.snapshot import Kindred, load, read_manifest, take, write
from consumers.faiss.training import build
from consumers.store import Version
from tests.vector_records import deletion, key_of, position, record

DIMENSION = 3
EVERY_LIST = 10_000  # nprobe at which a partitioned index is exact
METRICS: Sequence[Metric] = ("cosine", "ip", "l2")

numbers = st.integers(-3, 3)
vectors = st.lists(numbers, min_size=DIMENSION, max_size=DIMENSION).map(lambda v: np.array(v, dtype=np.float32))
bad = st.sampled_from([np.array([1, 2], np.float32), np.array([np.nan, 1, 1], np.float32), "nonsense"])
values = st.one_of(vectors, vectors, vectors, st.none(), bad, st.just("delete"))
changes = st.tuples(st.integers(0, 11), st.integers(1, 60), values)
steps = st.one_of(
    st.tuples(st.just("apply"), st.lists(changes, min_size=1, max_size=25)),
    st.tuples(st.just("apply"), st.lists(changes, min_size=1, max_size=25)),
    st.tuples(st.just("truncate"), st.integers(1, 60)),
    st.tuples(st.just("restart"), st.none()),
    st.tuples(st.just("train"), st.sampled_from(["flat", "ivf"])),
    st.tuples(st.just("exchange"), st.none()),
)


@dataclass
class Model:
    """Key → (lsn, value), the newest wins; equal positions are the same change."""

    metric: Metric
    rows: dict[int, tuple[int, Any]] = field(default_factory=dict)
    floor: int = 0

    def apply(self, key: int, lsn: int, value: Any) -> None:
        if lsn >= self.floor and (key not in self.rows or lsn > self.rows[key][0]):
            self.rows[key] = (lsn, value)

    def truncate(self, below: int) -> None:
        self.floor = max(self.floor, below)
        self.rows = {key: row for key, row in self.rows.items() if row[0] >= below}

    def holds_nothing(self, value: Any) -> bool:
        """True for what is rejected."""
        if not isinstance(value, np.ndarray):
            return value == "nonsense"
        zero = self.metric == "cosine" and not value.any()
        return value.shape != (DIMENSION,) or not np.isfinite(value).all() or zero

    def live(self) -> dict[int, tuple[int, Any]]:
        return {
            key: (lsn, value)
            for key, (lsn, value) in self.rows.items()
            if isinstance(value, np.ndarray) and not self.holds_nothing(value)
        }

    def score(self, query: Any, value: Any) -> float:
        a, b = query.astype(float), value.astype(float)
        if self.metric == "l2":
            return float(((a - b) ** 2).sum())
        return float(a @ b) / (float(np.sqrt((a @ a) * (b @ b))) if self.metric == "cosine" else 1.0)


def restarted(content: Content, metric: Metric) -> Content:
    with tempfile.TemporaryDirectory() as folder:
        kindred = Kindred("public.memories", content.source.label, "", metric, content.source.dimension)
        path = Path(folder) / "snapshot-1"
        write(path, take(content, kindred))
        again = Content(VectorColumn("embedding", metric, DIMENSION), metric)
        load(path, read_manifest(path), again)
        return again


def check(content: Content, model: Model, queries: Sequence[Any], k: int) -> None:
    live = model.live()
    size = content.index.size if content.index is not None else 0
    assert size == len(live)
    bare = {key: row for key, row in model.rows.items() if row[1] is None}
    assert sorted(content.held()) == sorted((key_of(key), position(row[0])) for key, row in {**live, **bare}.items())
    for key in range(12):
        expected = None
        if key in model.rows and not model.holds_nothing(model.rows[key][1]):
            lsn, value = model.rows[key]
            deleted = isinstance(value, str) and value == "delete"
            expected = Version(position(lsn), b'{"m":%d}' % lsn, deleted)
        assert content.versions([key_of(key)]) == [expected]
    for query in queries:
        hits = content.search(query[None], k, EVERY_LIST)[0]
        scores = {key_of(key): model.score(query, value) for key, (_lsn, value) in live.items()}
        best = sorted(scores.values(), reverse=model.metric != "l2")[:k]
        np.testing.assert_allclose([hit.score for hit in hits], best, atol=1e-4)
        np.testing.assert_allclose([hit.score for hit in hits], [scores[hit.key] for hit in hits], atol=1e-4)
        assert len({hit.key for hit in hits}) == len(hits)


@settings(max_examples=250, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(METRICS),
    st.lists(steps, min_size=1, max_size=12),
    st.lists(vectors.filter(lambda v: bool(v.any())), min_size=1, max_size=2),
    st.integers(1, 15),
)
def test_the_index_equals_a_dictionary(metric: Metric, work: Any, queries: Any, k: int) -> None:
    content = Content(VectorColumn("embedding", metric, DIMENSION), metric)
    model = Model(metric)
    known: dict[tuple[int, int], Any] = {}  # a position of a key is one change
    trained = None
    for step, detail in work:
        if step == "apply":
            records = []
            for key, lsn, fresh in detail:
                value = known.setdefault((key, lsn), fresh)
                model.apply(key, lsn, value)
                delete = isinstance(value, str) and value == "delete"
                records.append(deletion(key, lsn) if delete else record(key, lsn, value))
            content.apply(records)
        elif step == "truncate":
            content.truncate(position(detail))
            model.truncate(detail)
        elif step == "restart":
            content, trained = restarted(content, metric), None
        elif step == "train" and content.index is not None and content.index.size:
            content.touched = set()
            trained = build(detail, *content.index.dump(), metric)
        elif step == "exchange" and trained is not None:
            content.replace(trained)
            trained = None
        check(content, model, queries, k)
