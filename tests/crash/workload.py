"""Random writing to PostgreSQL by several sessions at once, and the journal of what was committed.

Every upsert gives its row a version from one sequence, under an advisory lock of the row's key: so versions of a key
grow as its transactions commit, whatever the sessions do. A transaction is journaled once its COMMIT was answered; one
whose answer was lost is in doubt. `who` is `session:number`, so that the order of a session's transactions shows.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

from tests.crash.invariants import Change, Key
from tests.pipeline import COLUMNS, DIMENSION, MEMORIES

TABLES = {
    "memories": {**COLUMNS, "version": "bigint"},
    "notes": {"id": "text", "who": "text", "content": "text", "version": "bigint"},
}
SCHEMA = (
    f"{MEMORIES}; ALTER TABLE memories ADD version bigint;"
    "CREATE TABLE notes (id text PRIMARY KEY, who text, content text, version bigint);"
    "ALTER TABLE notes ALTER content SET STORAGE EXTERNAL; CREATE SEQUENCE versions"
)
ROWS = 240  # keys a table
HOT = 12  # keys of memories that get a third of all changes
LARGE = 150  # rows of a large transaction, several chunks of transaction_rows
SESSIONS = 3
PAUSE_SECONDS = (0.01, 0.08)  # between two transactions of a session


class Journal:
    """What the sessions committed since it was last cleared; written by their threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.acknowledged: Counter[Change] = Counter()
        self.doubtful: Counter[Change] = Counter()
        self.transactions = 0
        self.lost = 0  # connections

    def add(self, changes: Sequence[Change], *, doubtful: bool = False) -> None:
        """A transaction's changes."""
        with self._lock:
            (self.doubtful if doubtful else self.acknowledged).update(changes)
            self.transactions += 1

    def lose(self) -> None:
        """A session lost its connection."""
        with self._lock:
            self.lost += 1

    def clear(self) -> None:
        """After a check."""
        with self._lock:
            self.acknowledged, self.doubtful = Counter(), Counter()


class Session(threading.Thread):
    """One client. `failed` is what ended it other than `stop`."""

    def __init__(self, dsn: str, name: str, chance: random.Random, journal: Journal, stop: threading.Event) -> None:
        super().__init__(name=name)
        self._dsn, self._chance, self._journal, self._stopped = dsn, chance, journal, stop
        self._number = 0
        self.failed: BaseException | None = None

    def run(self) -> None:
        """Until stopped; a lost server is connected to again."""
        try:
            while not self._stopped.is_set():
                try:
                    with psycopg.connect(self._dsn) as connection:
                        while not self._stopped.wait(self._chance.uniform(*PAUSE_SECONDS)):
                            self._transaction(connection)
                except psycopg.OperationalError:
                    self._journal.lose()
                    self._stopped.wait(0.1)  # the server starts
        except BaseException as error:
            self.failed = error
            raise

    def _transaction(self, connection: psycopg.Connection) -> None:
        self._number += 1
        work = _Work(connection, self._chance, f"{self.name}:{self._number}")
        work.do()
        if self._chance.random() < 0.08:
            connection.rollback()
            return
        try:
            connection.commit()
        except psycopg.OperationalError:
            self._journal.add(work.changes, doubtful=True)
            raise
        self._journal.add(work.changes)


class _Work:
    """One transaction over one table."""

    def __init__(self, connection: psycopg.Connection, chance: random.Random, who: str) -> None:
        self._connection, self._chance, self._who = connection, chance, who
        self._table = chance.choices(tuple(TABLES), (3, 1))[0]
        self.changes: list[Change] = []

    def do(self) -> None:
        """Locks its keys in order, then changes them in any order."""
        dice = self._chance.random()
        if dice < 0.004:
            self._connection.execute(f"TRUNCATE {self._table}")
        elif dice < 0.03:
            first = self._chance.randrange(ROWS - LARGE)
            self._lock(range(first, first + LARGE))
            self._put(range(first, first + LARGE))
        else:
            keys = self._keys(self._chance.randint(1, 5))
            self._lock(keys)
            self._some(keys)
            if self._chance.random() < 0.3:
                self._within_savepoint(keys)

    def _within_savepoint(self, keys: Sequence[int]) -> None:
        before = len(self.changes)
        self._connection.execute("SAVEPOINT inside")
        self._some(keys)
        if self._chance.random() < 0.5:
            self._connection.execute("ROLLBACK TO SAVEPOINT inside")
            del self.changes[before:]

    def _some(self, keys: Sequence[int]) -> None:
        for key in self._chance.sample(keys, len(keys)):
            change = self._chance.choices(("put", "touch", "delete", "move"), (4, 3, 1.5, 0.7))[0]
            if change == "put":
                self._put([key])
            elif change == "touch":
                self._update(key, key)
            elif change == "delete":
                self._delete(key)
            else:
                self._update(key, self._chance.choice(keys))

    def _keys(self, number: int) -> list[int]:
        hot = HOT if self._chance.random() < 0.33 else ROWS
        return sorted(self._chance.sample(range(hot), number))

    def _lock(self, keys: Sequence[int]) -> None:
        query = "SELECT pg_advisory_xact_lock(hashtext(%s), key) FROM unnest(%s::int[]) AS key"
        self._connection.execute(query, [self._table, list(keys)])

    def _id(self, key: int) -> str:
        return str(key) if self._table == "memories" else f"note-{key}"

    def _put(self, keys: Sequence[int]) -> None:
        """Inserts, or updates every column."""
        names = [name for name in TABLES[self._table] if name != "version"]
        rows = [self._row(key) for key in keys]
        values = ", ".join(f"({', '.join(['%s'] * len(names))}, nextval('versions'))" for _ in rows)
        sets = ", ".join(f"{name} = excluded.{name}" for name in [*names[1:], "version"])
        self._note(
            f"INSERT INTO {self._table} ({', '.join(names)}, version) VALUES {values}"
            f" ON CONFLICT (id) DO UPDATE SET {sets} RETURNING id::text, version",
            [value for row in rows for value in row],
        )

    def _row(self, key: int) -> list[Any]:
        chance = self._chance
        text = chance.randbytes(chance.choice((4, 30, 1500))).hex()  # the longest goes to TOAST
        if self._table == "notes":
            return [self._id(key), self._who, text]
        vector = [chance.uniform(-1, 1) for _ in range(DIMENSION)] if chance.random() < 0.9 else None
        score = chance.choice((None, float("nan"), float("-inf"), chance.random()))
        return [key, self._who, chance.choice((text, None)), score, chance.randrange(10**6) / 100, '{"a": [1]}', vector]

    def _update(self, key: int, target: int) -> None:
        """Two columns, and the key when `target` is another one that is free; TOAST stays as it is."""
        moved = self._note(
            f"UPDATE {self._table} SET id = %s, who = %s, version = nextval('versions') WHERE id = %s AND (id = %s OR"
            f" NOT EXISTS (SELECT FROM {self._table} WHERE id = %s)) RETURNING id::text, version",
            [self._typed(target), self._who, self._typed(key), self._typed(target), self._typed(target)],
            before=Key(self._table, self._id(key)) if key != target else None,
        )
        assert moved <= 1

    def _delete(self, key: int) -> None:
        self._note(f"DELETE FROM {self._table} WHERE id = %s RETURNING id::text, NULL", [self._typed(key)])

    def _typed(self, key: int) -> int | str:
        return key if self._table == "memories" else self._id(key)

    def _note(self, query: str, parameters: list[Any], before: Key | None = None) -> int:
        """Executes; notes what it returns, `before` as deleted when a row was moved away from there."""
        rows = self._connection.execute(query, parameters).fetchall()
        if before is not None and rows:
            self.changes.append(Change(before, None))
        self.changes += [Change(Key(self._table, key), version) for key, version in rows]
        return len(rows)


@contextmanager
def writing(dsn: str, label: str, chance: random.Random, journal: Journal) -> Iterator[None]:
    """Sessions at work, stopped at the end; raises what ended one."""
    stop = threading.Event()
    sessions = [
        Session(dsn, f"{label}s{number}", random.Random(chance.random()), journal, stop) for number in range(SESSIONS)
    ]
    for session in sessions:
        session.start()
    try:
        yield
    finally:
        stop.set()
        for session in sessions:
            session.join()
    for session in sessions:
        if session.failed is not None:
            raise session.failed
