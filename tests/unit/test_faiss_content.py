"""What each kind of record does to the index."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cdc.errors import StoreError
from consumers.embedder import HashingEmbedder
from consumers.faiss.columns import TextColumn, VectorColumn
from consumers.faiss.content import Content
from consumers.faiss.metric import Metric
from tests.vector_records import deletion, key_of, position, record, tombstone


def array(*values: float) -> Any:
    return np.array(values, dtype=np.float32)


def content_of(metric: Metric = "cosine", dimension: int | None = 3) -> Content:
    return Content(VectorColumn("embedding", metric, dimension), metric)


def found(content: Content, *query: float, k: int = 10) -> list[bytes]:
    return [hit.key for hit in content.search(array(*query)[None], k, 1)[0]]


def test_insert_update_delete() -> None:
    content = content_of()
    assert content.apply([record(1, 10, array(1, 0, 0)), record(2, 11, array(0, 1, 0))]).upserts == 2
    assert found(content, 1, 0, 0, k=1) == [key_of(1)]
    content.apply([record(1, 12, array(0, 0, 1), op="u")])
    assert found(content, 0, 0, 1, k=1) == [key_of(1)]
    hit = content.search(array(0, 0, 5)[None], 1, 1)[0][0]
    assert hit == (key_of(1), pytest.approx(1.0), position(12), b'{"m":12}')
    applied = content.apply([deletion(1, 13), tombstone(1, 13)])
    assert (applied.deletes, applied.stale) == (1, 0)
    assert found(content, 0, 0, 1) == [key_of(2)]
    version = content.versions([key_of(1)])[0]
    assert version is not None
    assert version == (position(13), b'{"m":13}', True)


def test_a_tombstone_alone_deletes_and_later_counts_as_nothing() -> None:
    content = content_of()
    content.apply([record(1, 10, array(1, 0, 0))])
    assert content.apply([tombstone(1, 11)]).deletes == 1
    again = content.apply([tombstone(1, 11)])
    assert (again.deletes, again.stale) == (0, 0)
    assert content.index is not None
    assert content.index.size == 0


def test_older_and_equal_records_change_nothing() -> None:
    content = content_of()
    content.apply([record(1, 10, array(1, 0, 0))])
    assert content.apply([record(1, 9, array(0, 1, 0)), record(1, 10, array(0, 0, 1)), deletion(1, 8)]).stale == 3
    assert content.vector_of(key_of(1)) == pytest.approx(array(1, 0, 0))
    content.apply([deletion(1, 20)])
    assert content.apply([record(1, 19, array(0, 1, 0))]).stale == 1
    assert content.vector_of(key_of(1)) is None


def test_the_newest_of_a_key_in_one_batch_counts_whatever_the_order() -> None:
    content = content_of()
    applied = content.apply(
        [
            record(1, 10, array(1, 0, 0)),
            record(1, 30, array(0, 0, 1)),
            record(1, 20, array(0, 1, 0)),
            record(2, 1, None),
        ]
    )
    assert (applied.upserts, applied.stale) == (3, 1)
    assert content.vector_of(key_of(1)) == pytest.approx(array(0, 0, 1))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (array(np.nan, 0, 1), "nonfinite"),
        (array(np.inf, 0, 1), "nonfinite"),
        ([1, None, 3], "nonfinite"),
        (array(0, 0, 0), "zero"),
        (array(1, 2), "dimension"),
        ([], "dimension"),
        ("f32:!!!!", "undecodable"),
        ("f32:AAA=", "undecodable"),
        ("no vector", "undecodable"),
        ({"a": 1}, "undecodable"),
        ("f64:" + "AAAAAAAA8H8=" + "", "dimension"),
    ],
)
def test_what_cannot_be_held_is_rejected_and_takes_the_old_vector_out(value: Any, reason: str) -> None:
    content = content_of()
    content.apply([record(1, 10, array(1, 0, 0)), record(2, 10, array(0, 1, 0))])
    bad = record(1, 11, value)
    applied = content.apply([bad, record(2, 11, array(0, 0, 1))])
    assert [(r.record, r.reason) for r in applied.rejected] == [(bad, reason)]
    assert applied.upserts == 1
    assert found(content, 0, 0, 1) == [key_of(2)]
    assert content.versions([key_of(1)]) == [None]
    assert content.apply([record(1, 10, array(1, 0, 0))]).stale == 1  # known as rejected at 11
    content.apply([record(1, 12, array(1, 0, 0))])
    assert found(content, 1, 0, 0, k=1) == [key_of(1)]


def test_a_missing_column_is_rejected() -> None:
    applied = content_of().apply([record(1, 1, array(1, 0, 0), column="other")])
    assert [(r.reason, "value" in r.message or "embedding" in r.message) for r in applied.rejected] == [
        ("undecodable", True)
    ]


def test_zero_is_a_vector_when_directions_do_not_matter() -> None:
    content = content_of("l2")
    assert content.apply([record(1, 1, array(0, 0, 0)), record(2, 1, array(5, 0, 0))]).rejected == []
    hits = content.search(array(1, 0, 0)[None], 2, 1)[0]
    assert [(hit.key, hit.score) for hit in hits] == [(key_of(1), 1.0), (key_of(2), 16.0)]


def test_lengths_whose_square_leaves_float32() -> None:
    content = content_of()
    content.apply([record(1, 1, array(1e30, 0, 0)), record(2, 1, array(0, 1e-30, 0)), record(3, 1, array(0, 0, 1e-42))])
    for number in range(3):
        axis = np.eye(3, dtype=np.float32)[number]
        assert content.search(axis[None], 1, 1)[0][0].score == pytest.approx(1.0)
    assert [r.reason for r in content_of("ip").apply([record(1, 1, array(1e30, 0, 0))]).rejected] == ["nonfinite"]


def test_float8_beyond_float32_is_rejected() -> None:
    wire = record(1, 1, [1e300, 0, 1])
    assert [r.reason for r in content_of().apply([wire]).rejected] == ["nonfinite"]


def test_null_is_known_but_not_indexed() -> None:
    content = content_of()
    content.apply([record(1, 1, array(1, 0, 0))])
    assert content.apply([record(1, 2, None)]).upserts == 1
    assert found(content, 1, 0, 0) == []
    assert content.held() == [(key_of(1), position(2))]
    assert content.versions([key_of(1)]) == [(position(2), b'{"m":2}', False)]


def test_an_unchanged_vector_moves_the_position_only() -> None:
    content = content_of()
    content.apply([record(1, 1, array(1, 2, 2))])
    content.touched = set()
    content.apply([record(1, 2, array(1, 2, 2))])
    assert content.touched == set()
    assert content.held() == [(key_of(1), position(2))]
    content.apply([record(1, 3, array(1, 2, 2.5))])
    assert len(content.touched) == 1


def test_truncate_removes_the_older_and_refuses_what_comes_later_and_is_older() -> None:
    content = content_of()
    content.apply([record(1, 10, array(1, 0, 0)), record(2, 10, None), deletion(3, 10), record(4, 20, array(0, 1, 0))])
    assert content.truncate(position(20)) == 2
    assert content.held() == [(key_of(4), position(20))]
    assert content.versions([key_of(1), key_of(3)]) == [None, None]
    assert content.apply([record(1, 19, array(1, 0, 0))]).stale == 1
    assert content.apply([record(1, 20, array(1, 0, 0))]).upserts == 1


def test_ids_stay_with_their_keys_and_forgotten_ones_are_used_again() -> None:
    content = content_of()
    content.apply([record(n, 10, array(1, n, 0)) for n in range(5)])
    content.apply([deletion(0, 11), deletion(3, 11)])
    ids = content.ledger.look_up([key_of(n) for n in range(5)]).tolist()
    assert content.prune(0, 10, covered=0) == 0  # no snapshot has them
    assert content.prune(3600, 1, covered=float("inf")) == 1  # beyond the number
    assert content.prune(-1, 10, covered=float("inf")) == 1  # beyond the age
    assert content.ledger.look_up([key_of(n) for n in range(5)]).tolist() == [-1, ids[1], ids[2], -1, ids[4]]
    content.apply([record(7, 12, array(0, 0, 1))])
    assert content.ledger.look_up([key_of(7)])[0] in (ids[0], ids[3])
    assert found(content, 0, 0, 1, k=1) == [key_of(7)]


def test_search_gives_k_when_there_are_k_and_all_when_there_are_fewer() -> None:
    content = content_of()
    assert found(content, 1, 0, 0) == []
    content.apply([record(n, 1, array(1, n, 0)) for n in range(4)])
    assert found(content, 1, 0, 0, k=3) == [key_of(n) for n in range(3)]
    assert len(found(content, 1, 0, 0, k=100)) == 4


@pytest.mark.parametrize("query", [[[1, 2]], [[np.nan, 0, 0]], [[0, 0, 0]], [1, 2, 3]])
def test_a_query_that_cannot_be_compared_is_refused_with_a_remedy(query: Any) -> None:
    content = content_of()
    content.apply([record(1, 1, array(1, 0, 0))])
    with pytest.raises(StoreError) as caught:
        content.search(np.array(query, dtype=np.float32), 1, 1)
    assert caught.value.hint
    with pytest.raises(StoreError):
        content.search(array(1, 0, 0)[None], 0, 1)


class CountingEmbedder(HashingEmbedder):
    """Counts texts."""

    texts = 0

    def embed(self, texts: Any) -> Any:
        self.texts += len(texts)
        return super().embed(texts)


def test_text_is_embedded_once_and_again_when_it_changes() -> None:
    embedder = CountingEmbedder(64)
    content = Content(TextColumn("content", "cosine", embedder), "cosine")

    def put(lsn: int, text: Any) -> Any:
        return content.apply([record(1, lsn, text, column="content")])

    put(1, "the cat sat on the mat")
    put(2, "the cat sat on the mat")
    assert (embedder.texts, content.held()) == (1, [(key_of(1), position(2))])
    put(3, "dogs bark")
    assert embedder.texts == 2
    assert content.search(embedder.embed(["dogs bark"]), 1, 1)[0][0].score == pytest.approx(1.0)
    for lsn, nothing in enumerate(("", " \n.", None), start=4):
        assert put(lsn, nothing).upserts == 1
        assert content.vector_of(key_of(1)) is None
    put(9, "the cat sat on the mat")
    assert content.vector_of(key_of(1)) is not None
    assert [r.reason for r in put(10, 5).rejected] == ["undecodable"]
    assert content.vector_of(key_of(1)) is None
