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
from consumers.redis.keys import encode_odd

KINDS = ("missing", "extra", "stale", "different")
STRANGE = 1_000_000  # ids from here on are not in PostgreSQL
Planted = dict[str, list[bytes]]


@dataclass
class Plan:
    """Which rows (ids) get which difference. `swapped` go in pairs; `outdated` are those changed at the source since
    `before` was called; `misstamped` say another version. Of the structure: `unfindable` (not in the user's index; a
    key without its vector), `misplaced` (with another score; in pairs under each other's name), `misfiled` (in another
    user's index too; a vector that its key does not have), `ghosts` (members or vectors of keys that are deleted)."""

    missing: list[int] = field(default_factory=list)
    extra: list[int] = field(default_factory=list)
    outdated: list[int] = field(default_factory=list)
    spoilt: list[int] = field(default_factory=list)
    swapped: list[int] = field(default_factory=list)
    misstamped: list[int] = field(default_factory=list)
    unfindable: list[int] = field(default_factory=list)
    misplaced: list[int] = field(default_factory=list)
    misfiled: list[int] = field(default_factory=list)
    ghosts: list[int] = field(default_factory=list)
    kinds: Mapping[str, list[bytes]] = field(init=False)

    def __post_init__(self) -> None:
        different = (self.spoilt, self.swapped, self.misstamped, self.unfindable, self.misplaced, self.misfiled)
        self.kinds = {
            "missing": keys(self.missing), "extra": keys([*self.extra, *self.ghosts]), "stale": keys(self.outdated),
            "different": keys([number for numbers in different for number in numbers]),
        }  # fmt: skip

    @property
    def number(self) -> int:
        """Keys that differ."""
        return sum(map(len, self.kinds.values()))


def keys(ids: Sequence[int]) -> list[bytes]:
    """Topic keys, sorted."""
    return sorted(b'{"id":%d}' % number for number in ids)


def plan(rng: random.Random, ids: Sequence[int], each: int) -> Plan:
    """`each` differences (an even number) of ten sorts among rows with these ids."""
    chosen = rng.sample(ids, 8 * each)
    strange = [STRANGE + number for number in rng.sample(range(STRANGE), 2 * each)]
    missing, outdated, spoilt, swapped, misstamped, unfindable, misplaced, misfiled = (
        chosen[at : at + each] for at in range(0, 8 * each, each)
    )
    return Plan(
        missing, strange[:each], outdated, spoilt, swapped, misstamped, unfindable, misplaced, misfiled, strange[each:]
    )


def flipped(rng: random.Random, raw: bytes) -> bytes:
    """One byte of it is another."""
    at = rng.randrange(len(raw))
    return raw[:at] + bytes((raw[at] ^ rng.randrange(1, 256),)) + raw[at + 1 :]


class RedisPlanter:
    """Writes hashes of the table `memories`, whose vector is the field `embedding` and whose user is `who`."""

    def __init__(self, url: str, made: Plan, rng: random.Random) -> None:
        self._client: redis.Redis = redis.Redis.from_url(url)
        self._plan, self._rng = made, rng
        self._before: dict[int, dict[bytes, bytes]] = {}
        touched = [*made.spoilt, *made.unfindable, *made.misplaced, *made.misfiled]
        self._users = {number: self._held(number)[b"who"].decode() for number in touched}

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
        for number in made.misstamped:
            self._misstamp(number)
        self._spoil_indexes()

    def _misstamp(self, number: int) -> None:
        held, column = self._held(number), self._rng.choice((b"_pos", b"_pos", b"_ver", b"_ts"))
        wrong = {
            b"_pos": self._rng.choice((b"f" * 32, b"%032x" % (int(held[b"_pos"], 16) + 1))),
            b"_ver": held[b"_ver"].replace(b":", b":1"),
            b"_ts": b"%d" % (int(held[b"_ts"]) - 1),
        }
        self._client.hset(name(number), column, wrong[column])  # type: ignore[call-overload]

    def _spoil_indexes(self) -> None:
        made, home = self._plan, self._index_of
        for number in made.unfindable:
            assert self._client.zrem(home(number), name(number)) == 1
        for number in made.misplaced:
            assert self._client.zincrby(home(number), 1, name(number))
        for number in made.misfiled:
            others = [other for other in map(home, made.spoilt) if other != home(number)]
            self._client.zadd(self._rng.choice(others), {name(number): 1})
        for number in made.ghosts:
            self._client.zadd(home(self._rng.choice(made.spoilt)), {name(number): 1})

    def _index_of(self, number: int) -> str:
        who = self._users[number]
        return f"memories:by_user:{encode_odd(who)}"

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
                self._invent(made.extra, State.LIVE)
            if made.ghosts:
                self._invent(made.ghosts, State.DELETED)
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
            for number in made.misstamped:
                self._misstamp(self._row(number))
            self._spoil_structure()

    def _misstamp(self, row: int) -> None:
        ledger = self._content.ledger
        after = b"%032x" % (int(bytes(ledger.positions[row]), 16) + 1)
        if self._rng.random() < 0.5:
            ledger.positions[row] = self._rng.choice((b"f" * 32, after))
        else:
            ledger.vectors[row] = ledger.vectors[row].replace(b":", b":1")

    def _spoil_structure(self) -> None:
        made, ledger = self._plan, self._content.ledger
        self._index.remove(np.array([self._row(number) for number in made.unfindable], dtype=np.int64))
        for one, other in zip(made.misplaced[::2], made.misplaced[1::2], strict=True):
            rows = [self._row(one), self._row(other)]
            ledger.keys[rows] = ledger.keys[rows[::-1]]
        for number in made.misfiled:
            ledger.states[self._row(number)] = State.BARE

    def _invent(self, numbers: Sequence[int], state: State) -> None:
        ledger = self._content.ledger
        model = [self._row(self._rng.choice(self._plan.spoilt)) for _ in numbers]
        rows = ledger.enter(keys(numbers), np.full(len(numbers), -1))
        self._index.put(rows, self._index.get(np.array(model)))
        states = np.full(len(rows), state, dtype=np.uint8)
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
