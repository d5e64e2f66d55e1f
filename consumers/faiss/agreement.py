"""Whether ledger and index agree: every live key has its one vector, reached from both sides, and there is no other.

Searches go from a place in the index to a key, everything else from a key to a place; damage may show on one side
only. Looking takes turns at the gate, so nothing that moves is taken for a difference: each finding is one moment's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cdc.position import ZERO
from consumers.faiss.arrays import Ids, Mask
from consumers.faiss.content import Content
from consumers.faiss.index import VectorIndex
from consumers.faiss.ledger import State

ROWS = 4000  # of the ledger looked at in one turn: some 5 ms


class Disagreement(NamedTuple):
    """Keys whose vector cannot be reached or is there twice or under another name (`different`), deleted keys whose
    vector is still found (`extra`), vectors that belong to no key (`nameless`, a number); and the highest positions the
    index goes by (wire form)."""

    different: list[bytes]
    extra: list[bytes]
    nameless: int
    floor: bytes
    watermark: bytes


def disagreement(content: Content) -> Disagreement:
    """Looks at everything, by turns."""
    with content.gate.reading():
        floor, watermark = content.ledger.floor, content.watermark
        present = content.index.ids() if content.index is not None else np.empty(0, np.int64)
        rows = len(content.ledger.states)
    once, times = np.unique(present, return_counts=True)
    different = {key for start in range(0, rows, ROWS) for key in _astray(content, start)}
    extra: list[bytes] = []
    nameless = 0
    with content.gate.reading():
        known = once[once < len(content.ledger.states)]
        odd = known[content.ledger.states[known] != State.LIVE]
        odd = odd[content.index.reached(odd)] if content.index is not None else odd
        twice = once[times > 1]
        for row in {*odd.tolist(), *twice.tolist()}:
            key, state = content.ledger.keys[row], content.ledger.states[row]
            nameless += key is None
            if key is not None:
                extra.extend([key] if state == State.DELETED else [])
                different.update([key] if state != State.DELETED else [])
    return Disagreement(sorted(different), extra, nameless + len(once) - len(known), floor, watermark)


def _astray(content: Content, start: int) -> list[bytes]:
    """Keys among some rows of the ledger that lead elsewhere, or to nothing."""
    with content.gate.reading():
        ledger = content.ledger
        states = ledger.states[start : start + ROWS]
        rows = start + np.flatnonzero(states != State.UNKNOWN)
        keys = ledger.keys[rows]
        wrong = ledger.look_up(keys.tolist()) != rows
        live = np.flatnonzero(ledger.states[rows] == State.LIVE)
        wrong[live] |= ~_reached(content.index, rows[live])
        return [key for key in keys[wrong].tolist() if key is not None]


def _reached(index: VectorIndex | None, ids: Ids) -> Mask:
    return np.zeros(len(ids), np.bool_) if index is None else index.reached(ids)


def agree(content: Content) -> int:
    """Takes out of the index whatever the ledger does not stand for, and has the ledger say so of keys that have no
    vector then: their next record puts it in again. Returns how many ids it touched. For the writer's thread."""
    with content.gate.writing():
        ledger, index = content.ledger, content.index
        for key, row in ledger.named():
            ledger.keys[row] = key
        if index is None:
            return 0
        once, times = np.unique(index.ids(), return_counts=True)
        sound = (times == 1) & index.reached(once) & (once < len(ledger.states))
        sound[sound] = ledger.states[once[sound]] == State.LIVE
        if not sound.all():
            index.drop(once[~sound])
        live = ledger.live()
        lost = live[~np.isin(live, once[sound])]
        ledger.states[lost], ledger.digests[lost] = State.BARE, 0
        if content.touched is not None:  # what is trained meanwhile has to take these anew
            content.touched.update(once[~sound].tolist(), lost.tolist())
    content.measure()
    return len(np.union1d(once[~sound], lost))


def lower(content: Content, keys: Sequence[bytes], reached: bytes) -> int:
    """Has the rows of these keys that claim a position above `reached` (wire form) take whatever comes next, and
    forgets of which text their vectors were made. Returns how many did. For the writer's thread."""
    with content.gate.writing():
        ledger = content.ledger
        ids = ledger.look_up(keys)
        ids = ids[ids >= 0]
        ledger.digests[ids] = 0
        above = ids[ledger.positions[ids] > np.bytes_(reached)]
        ledger.positions[above] = ZERO.encode()
        return len(above)
