"""Changes give way to searches that run, and are not held up by searches without end."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consumers.faiss.columns import VectorColumn
from consumers.faiss.content import STAGED, Content
from consumers.faiss.precedence import Precedence
from tests.vector_records import batch, config, opened, record, vectors

PATIENCE = 30.0  # seconds until a test that hangs fails
SHORT = 0.01  # seconds that a search lasts too long
MEBIBYTES = 3  # of vectors in a snapshot


def test_nobody_waits_while_nobody_searches() -> None:
    assert Precedence().give_way(PATIENCE)


def test_a_change_waits_for_all_searches() -> None:
    precedence, waited = Precedence(), threading.Event()

    def change() -> None:
        assert precedence.give_way(PATIENCE)
        waited.set()

    with precedence.searching():
        with precedence.searching():
            changing = threading.Thread(target=change)
            changing.start()
        assert not waited.wait(SHORT)
    assert waited.wait(PATIENCE)
    changing.join()


def test_a_search_without_end_stops_no_change() -> None:
    precedence = Precedence()
    with precedence.searching():
        assert not precedence.give_way(SHORT)
    assert precedence.give_way(PATIENCE)


def test_a_search_that_fails_is_over() -> None:
    precedence = Precedence()
    with pytest.raises(ValueError, match="no search"), precedence.searching():
        raise ValueError("no search")
    assert precedence.give_way(0)


@pytest.mark.parametrize(("records", "ways"), [(1, 0), (STAGED - 1, 0), (STAGED, 1), (2 * STAGED + 1, 2)])
def test_large_batches_give_way_after_each_slice_and_small_ones_never(
    records: int, ways: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, given = Content(VectorColumn("embedding", "cosine", 4), "cosine"), []
    monkeypatch.setattr(content.precedence, "give_way", lambda: given.append(content.index.size))  # type: ignore[union-attr]
    data = vectors(records, 4)
    content.apply([record(number, number + 1, data[number]) for number in range(records)])
    assert given == [STAGED * (number + 1) for number in range(ways)]


def test_a_search_in_the_index_has_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    content = Content(VectorColumn("embedding", "cosine", 4), "cosine")
    data = vectors(4, 4)
    content.apply([record(number, number + 1, data[number]) for number in range(4)])
    assert content.index is not None
    search, seen = content.index.search, []

    def searched(*arguments: Any) -> Any:
        seen.append(content.precedence.give_way(0))
        return search(*arguments)

    monkeypatch.setattr(content.index, "search", searched)
    content.search(np.asarray(data[:1]), 1, 1)
    assert seen == [False]
    assert content.precedence.give_way(0)


async def test_writing_a_snapshot_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = vectors(MEBIBYTES * 1024, 256)  # of 1 KiB each
    async with opened(config(tmp_path)) as store:
        await store.apply(batch([record(number, number + 1, data[number]) for number in range(len(data))]))
        given: list[None] = []
        monkeypatch.setattr(store.loaded().precedence, "give_way", lambda: given.append(None))
        await store.flush(force=True)
    assert len(given) >= MEBIBYTES
