"""A picture of the exact index shows the moment it was taken, whatever changes while it is written."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable
from functools import partial

import faiss
import numpy as np
import pytest

from consumers.faiss import picture
from consumers.faiss.flat import FlatIndex
from consumers.faiss.index import Write
from consumers.faiss.metric import Metric, faiss_metric
from tests.chance import seeded
from tests.vector_records import vectors

DIMENSION = 8
ROWS = 7  # vectors a piece, in these tests
ROUNDS = 50
PATIENCE = 30.0  # seconds until a test that hangs fails


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "PIECE_BYTES", ROWS * DIMENSION * 4)


def filled(number: int, metric: Metric = "cosine") -> FlatIndex:
    index = FlatIndex(DIMENSION, metric, max(1, number))
    index.put(np.arange(number), vectors(number, DIMENSION))
    return index


def by_faiss(index: FlatIndex, metric: Metric = "cosine") -> bytes:
    """The file that FAISS itself writes of what the index holds now."""
    native = faiss.IndexIDMap(faiss.IndexFlat(DIMENSION, faiss_metric(metric)))
    ids, held = index.dump()
    native.add_with_ids(held, ids)
    found: bytes = faiss.serialize_index(native).tobytes()
    return found


def change(index: FlatIndex, chance: random.Random) -> None:
    """New, other and fewer vectors; sometimes so many that the array grows."""
    ids = np.array(chance.sample(range(200), chance.randint(1, 60)))
    if chance.random() < 0.4:
        index.remove(ids)
    else:
        index.put(ids, vectors(len(ids), DIMENSION, seed=chance.randrange(1 << 30)))


def written(write: Write, between: Callable[[], object] = lambda: None) -> bytes:
    """What a picture hands over; `between` is called after each piece."""
    found = bytearray()

    def out(piece: bytes | memoryview) -> None:
        found.extend(piece)
        between()

    write(out)
    return bytes(found)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("number", [1, ROWS, 5 * ROWS + 1])
def test_it_is_written_as_faiss_would(metric: Metric, number: int) -> None:
    index = filled(number, metric)
    assert written(index.export()) == by_faiss(index, metric)


def test_changes_between_its_pieces_do_not_show() -> None:
    chance = seeded()
    for _ in range(ROUNDS):
        index = filled(chance.randint(1, 100))
        write, shown = index.export(), by_faiss(index)
        for _ in range(chance.randint(0, 3)):
            change(index, chance)
        assert written(write, partial(change, index, chance)) == shown


def test_two_pictures_show_their_own_moments() -> None:
    chance = seeded()
    index = filled(100)
    first, shown = index.export(), by_faiss(index)
    change(index, chance)
    second, shown_later = index.export(), by_faiss(index)
    change(index, chance)
    assert written(second, partial(change, index, chance)) == shown_later
    assert written(first) == shown


def test_changes_in_another_thread_do_not_show() -> None:
    chance = seeded()
    index, changed, done = filled(500), threading.Event(), threading.Event()

    def changing() -> None:
        while not done.is_set():
            ids = np.array(chance.sample(range(500), 30))
            index.put(ids, vectors(30, DIMENSION, seed=chance.randrange(1 << 30)))
            changed.set()

    def wait() -> None:
        assert changed.wait(PATIENCE)
        changed.clear()

    thread = threading.Thread(target=changing)
    write, shown = index.export(), by_faiss(index)
    thread.start()
    try:
        assert written(write, wait) == shown
    finally:
        done.set()
        thread.join()


def test_one_that_is_let_go_keeps_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    index, kept = filled(100), []
    monkeypatch.setattr(picture.Picture, "keep", lambda self, slots: kept.extend(slots.tolist()))
    write = index.export()
    index.put(np.array([3]), vectors(1, DIMENSION))
    assert kept == [3]
    del write
    gc.collect()
    index.put(np.array([4]), vectors(1, DIMENSION))
    assert kept == [3]
