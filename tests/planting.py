"""Differences put into the stores behind the pipeline's back: what verify has to find.

Each planter changes a store only, and says by kind which keys differ from then on.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import redis

from consumers.faiss import FaissStore
from consumers.faiss.content import Content
from consumers.faiss.ledger import State

KINDS = ("missing", "extra", "stale", "different")
STRANGE = 1_000_000  # ids from here on are not in PostgreSQL
Planted = dict[str, list[bytes]]


@dataclass
class Plan:
    """Which rows (ids) get which difference. `swapped` go in pairs; `outdated` are those changed at the source since
    `before` was called."""

    missing: list[int]
    extra: list[int]
    outdated: list[int]
    spoilt: list[int]
    swapped: list[int]
    kinds: Mapping[str, list[bytes]] = field(init=False)

    def __post_init__(self) -> None:
        self.kinds = {
            "missing": keys(self.missing), "extra": keys(self.extra), "stale": keys(self.outdated),
            "different": keys([*self.spoilt, *self.swapped]),
        }  # fmt: skip

    @property
    def number(self) -> int:
        """Keys that differ."""
        return sum(map(len, self.kinds.values()))


def keys(ids: Sequence[int]) -> list[bytes]:
    """Topic keys, sorted."""
    return sorted(b'{"id":%d}' % number for number in ids)


def plan(rng: random.Random, ids: Sequence[int], each: int) -> Plan:
    """`each` differences of five sorts among rows with these ids."""
    chosen = rng.sample(ids, 4 * each)
    extra = [STRANGE + number for number in rng.sample(range(STRANGE), each)]
    missing, outdated, spoilt, swapped = (chosen[at : at + each] for at in range(0, 4 * each, each))
    return Plan(missing, extra, outdated, spoilt, swapped)


def flipped(rng: random.Random, raw: bytes) -> bytes:
    """One byte of it is another."""
    at = rng.randrange(len(raw))
    return raw[:at] + bytes((raw[at] ^ rng.randrange(1, 256),)) + raw[at + 1 :]


class RedisPlanter:
    """Writes hashes of the table `memories`, whose vector is the field `embedding`."""

    def __init__(self, url: str, made: Plan, rng: random.Random) -> None:
        self._client: redis.Redis = redis.Redis.from_url(url)
        self._plan, self._rng = made, rng
        self._before: dict[int, dict[bytes, bytes]] = {}

    def before(self) -> None:
        """Remembers what rows were."""
        self._before = {number: self._held(number) for number in self._plan.outdated}

    def plant(self) -> None:
        """All of the plan."""
        made = self._plan
        self._client.delete(*map(name, made.missing))
        for number in made.extra:
            self._write(number, {**self._held(self._rng.choice(made.spoilt)), b"id": b"%d" % number})
        for number, held in self._before.items():
            self._write(number, held)
        for number in made.spoilt:
            self._spoil(number)
        for one, other in zip(made.swapped[::2], made.swapped[1::2], strict=True):
            vectors = [self._held(number)[b"embedding"] for number in (one, other)]
            self._client.hset(name(one), "embedding", vectors[1])
            self._client.hset(name(other), "embedding", vectors[0])

    def _spoil(self, number: int) -> None:
        held = {field: value for field, value in self._held(number).items() if value and not field.startswith(b"_")}
        column = self._rng.choice(sorted(held))
        self._client.hset(name(number), column, flipped(self._rng, held[column]))  # type: ignore[call-overload]

    def _held(self, number: int) -> dict[bytes, bytes]:
        found: Any = self._client.hgetall(name(number))
        assert found, number
        return dict(found)

    def _write(self, number: int, fields: Mapping[bytes, bytes]) -> None:
        self._client.delete(name(number))
        self._client.hset(name(number), mapping=fields)  # type: ignore[arg-type]

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()


def name(number: int) -> str:
    """The Redis key."""
    return f"memories:{number}"


class IndexPlanter:
    """Writes into the index of a consumer in this process."""

    def __init__(self, store: FaissStore, made: Plan, rng: random.Random) -> None:
        self._content: Content = store.loaded()
        self._plan, self._rng = made, rng
        self._before: dict[int, tuple[bytes, Any]] = {}

    def before(self) -> None:
        """Remembers what rows were."""
        with self._content.gate.reading():
            for number in self._plan.outdated:
                row = self._row(number)
                self._before[number] = (bytes(self._content.ledger.positions[row]), self._vector(number))

    def plant(self) -> None:
        """All of the plan."""
        made, ledger = self._plan, self._content.ledger
        with self._content.gate.writing():
            gone = np.array([self._row(number) for number in made.missing], dtype=np.int64)
            self._index.remove(gone)
            ledger.forget(gone)
            if made.extra:
                self._invent()
            for number, (position, vector) in self._before.items():
                self._put(number, vector)
                ledger.positions[self._row(number)] = position
            for number in made.spoilt:
                raw = flipped(self._rng, self._vector(number).tobytes())
                self._put(number, np.frombuffer(raw, dtype=np.float32))
            for one, other in zip(made.swapped[::2], made.swapped[1::2], strict=True):
                vectors = [self._vector(number) for number in (one, other)]
                self._put(one, vectors[1])
                self._put(other, vectors[0])

    def _invent(self) -> None:
        made, ledger = self._plan, self._content.ledger
        model = [self._row(self._rng.choice(made.spoilt)) for _ in made.extra]
        rows = ledger.enter(keys(made.extra), np.full(len(made.extra), -1))
        self._index.put(rows, self._index.get(np.array(model)))
        states = np.full(len(rows), State.LIVE, dtype=np.uint8)
        ledger.note(rows, ledger.positions[model], ledger.vectors[model], states, ledger.digests[model])  # type: ignore[arg-type]

    @property
    def _index(self) -> Any:
        assert self._content.index is not None
        return self._content.index

    def _row(self, number: int) -> int:
        found = int(self._content.ledger.look_up(keys([number]))[0])
        assert found >= 0, number
        return found

    def _vector(self, number: int) -> Any:
        return self._index.get(np.array([self._row(number)]))[0].copy()

    def _put(self, number: int, vector: Any) -> None:
        self._index.put(np.array([self._row(number)]), vector[None].copy())

    def close(self) -> None:
        """Nothing to end."""
