"""Which stores have which row, whatever writers, savepoints and a lagging store do at random."""

from __future__ import annotations

import random
from collections.abc import Callable

import psycopg
import pytest

from tests.chance import seeded
from tests.control.sync_status import Store, held, put

WRITERS = 4
STEPS = 100


class Writer:
    """A connection that does things at random with ids of its own; knows what it has not committed."""

    def __init__(self, connection: psycopg.Connection, number: int) -> None:
        self.connection, self.number = connection, number
        self.stack: list[set[int]] = []  # ids written, a level of savepoints each; none when idle

    def step(self, chance: random.Random) -> set[int]:
        """One action; the ids that it committed."""
        if not self.stack:
            self._do(chance.choice(("BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ")))
            self.stack.append(set())
            return set()
        action = chance.choices(("put", "save", "release", "undo", "COMMIT", "ROLLBACK"), (10, 4, 3, 2, 2, 1))[0]
        if action in ("COMMIT", "ROLLBACK"):
            self._do(action)
            written, self.stack = set().union(*self.stack), []
            return written if action == "COMMIT" else set()
        if action == "put":
            key = chance.randrange(10) * WRITERS + self.number
            put(self.connection, key)
            self.stack[-1].add(key)
        elif action == "save":
            self._do(f"SAVEPOINT s{len(self.stack)}")
            self.stack.append(set())
        elif len(self.stack) > 1:
            top = self.stack.pop()
            self._do(f"{'RELEASE' if action == 'release' else 'ROLLBACK TO'} s{len(self.stack)}")
            self.stack[-1] |= top if action == "release" else set()
        return set()

    @property
    def open(self) -> set[int]:
        """Ids that nobody else sees yet."""
        return set().union(*self.stack)

    def _do(self, statement: str) -> None:
        self.connection.execute(statement.encode())


@pytest.mark.parametrize("turn", range(3))
def test_never_there_before_it_is(connect: Callable[[], psycopg.Connection], store: Store, turn: int) -> None:
    """Writers, savepoints and a store that lags, interleaved at random; the oracle knows when each row committed."""
    chance, observer = seeded(f"turn {turn}"), connect()
    chance.seed(chance.random() + turn)
    writers = [Writer(connect(), number) for number in range(WRITERS)]
    committed: dict[int, int] = {}  # id → an LSN before its newest commit, and after all that came before it
    claims = 0
    for _step in range(STEPS):
        before = store.now()
        writer = chance.choice(writers)
        committed.update(dict.fromkeys(writer.step(chance), before))
        if chance.random() < 0.3:
            store.reach(chance.randint(store.lsn, store.now()) if chance.random() < 0.5 else store.now())
        seen = held(observer)
        assert seen.keys() == committed.keys()
        early = [key for key, there in seen.items() if there and committed[key] >= store.lsn]
        assert early == []
        claims += sum(seen.values())
        if writer.stack:
            mine = held(writer.connection)
            assert [key for key in writer.open if mine[key]] == []
    for writer in writers:
        if writer.stack:
            writer.connection.execute("COMMIT")
    store.follow()
    assert set(held(observer).values()) == {True}
    assert claims > STEPS  # the test is none when it never says "there"
