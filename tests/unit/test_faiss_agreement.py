"""Ledger and index: each way in which they can come apart is seen, by its key, and ended."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cdc.envelope import encode_floats
from consumers.faiss.agreement import agree, disagreement
from consumers.faiss.columns import VectorColumn
from consumers.faiss.content import Content
from consumers.faiss.ivf import train
from consumers.faiss.ledger import State
from consumers.store import Record

ROWS, DIMENSION = 500, 8
VECTORS = np.random.default_rng(7).standard_normal((ROWS, DIMENSION)).astype(np.float32)


def key(number: int) -> bytes:
    return b'{"id":%d}' % number


def record(number: int, position: int) -> Record:
    row = b'{"id":%d,"embedding":"%b"}' % (number, encode_floats(VECTORS[number]).encode())
    return Record(
        key(number), b'{"op":"c","source":{"ts_us":0},"after":%b}' % row, b"%032x" % position, b"{}", 0, position
    )


@pytest.fixture(params=["flat", "ivf"])
def content(request: pytest.FixtureRequest) -> Content:
    made = Content(VectorColumn("embedding", "l2", DIMENSION), "l2")
    made.apply([record(number, number) for number in range(ROWS)])
    if request.param == "ivf":
        assert made.index is not None
        made.touched = set()
        made.replace(train(*made.index.dump(), "l2"))
    return made


def ids(content: Content, *numbers: int) -> Any:
    return content.ledger.look_up([key(number) for number in numbers])


def test_what_was_applied_agrees(content: Content) -> None:
    content.apply([record(3, ROWS), record(5, ROWS + 1)._replace(value=None)])
    assert disagreement(content)[:3] == ([], [], 0)
    assert agree(content) == 0


def lost(content: Content, index: Any) -> tuple[list[int], list[int], int]:
    index.remove(ids(content, 0, 1))
    return [0, 1], [], 0


def deleted(content: Content, index: Any) -> tuple[list[int], list[int], int]:
    content.ledger.states[ids(content, 2)] = State.DELETED
    return [], [2], 0


def bare(content: Content, index: Any) -> tuple[list[int], list[int], int]:
    content.ledger.states[ids(content, 3)] = State.BARE
    return [3], [], 0


def misnamed(content: Content, index: Any) -> tuple[list[int], list[int], int]:
    content.ledger.keys[ids(content, 4, 5)] = content.ledger.keys[ids(content, 5, 4)]
    return [4, 5], [], 0


def nameless(content: Content, index: Any) -> tuple[list[int], list[int], int]:
    index.put(np.array([ROWS + 100, 1_000_000]), VECTORS[:2].copy())
    return [], [], 2


def twice(content: Content, index: Any) -> tuple[list[int], list[int], int]:
    """Searches find two vectors of a key; or, in the flat index, each of two keys' vectors under the other's name."""
    if index.kind == "ivf":
        index._native.add_with_ids(VECTORS[6:7], ids(content, 6))
        return [6], [], 0
    places = index._slots[ids(content, 6, 7)]
    index._ids[places] = index._ids[places[::-1]]
    return [6, 7], [], 0


@pytest.mark.parametrize("damage", [lost, deleted, bare, misnamed, nameless, twice])
def test_damage_is_seen_and_ended(content: Content, damage: Any) -> None:
    different, extra, number = damage(content, content.index)
    found = disagreement(content)
    assert (found.different, found.extra, found.nameless) == (
        [key(number) for number in different], [key(number) for number in extra], number
    )  # fmt: skip
    assert agree(content) == (0 if damage is misnamed else len(different) + len(extra) + number)
    assert disagreement(content)[:3] == ([], [], 0)
    if different:
        content.apply([record(number, 2 * ROWS + number) for number in different])
    assert disagreement(content)[:3] == ([], [], 0)
    [[hit]] = content.search(VECTORS[ROWS - 1][None], 1, 64)
    assert hit.key == key(ROWS - 1)
    for number in different:
        [[hit]] = content.search(VECTORS[number][None], 1, 64)
        assert (hit.key, hit.score) == (key(number), pytest.approx(0, abs=1e-6))
