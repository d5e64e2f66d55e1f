"""A count kept by triggers: exact whatever writers do at once, and nobody waits for anybody because of it."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import Connection

from cdc.control.retention import prune
from cdc.migrations import migrate
from tests.chance import seeded

WRITERS = 4
TRANSACTIONS = 60
FILL = "INSERT INTO notes SELECT n FROM generate_series(1, 100) n"
BOTH = "SELECT (SELECT rows FROM cdc.row_counts WHERE target = 'notes'::regclass), (SELECT count(*) FROM notes)"


@pytest.fixture
def connection(database: str) -> Iterator[Connection]:
    """A superuser's; with a counted table `notes` of 100 rows."""
    migrate(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS child, notes")
        prune(connection)  # the counts of tables that are gone
        connection.execute("CREATE TABLE notes (id bigint PRIMARY KEY, text text)")
        connection.execute(FILL)
        assert connection.execute("SELECT cdc.count_rows('notes')").fetchone() == (100,)
        yield connection


def assert_exact(connection: Connection, rows: int | None = None) -> None:
    """The count is that of the table, both seen at one moment."""
    counted, there = connection.execute(BOTH).fetchone() or (None, None)
    assert counted == there
    assert rows is None or there == rows


@pytest.mark.parametrize(
    ("statement", "rows"),
    [
        ("INSERT INTO notes VALUES (200), (201)", 102),
        ("INSERT INTO notes VALUES (1), (200) ON CONFLICT DO NOTHING", 101),
        ("INSERT INTO notes VALUES (1), (200) ON CONFLICT (id) DO UPDATE SET text = 'x'", 101),
        ("UPDATE notes SET text = 'x'", 100),
        ("UPDATE notes SET id = id + 1000", 100),
        ("DELETE FROM notes WHERE id <= 30", 70),
        ("DELETE FROM notes WHERE false", 100),
        ("TRUNCATE notes", 0),
        ("WITH gone AS (DELETE FROM notes WHERE id < 11 RETURNING id) INSERT INTO notes SELECT id + 500 FROM gone",
         100),
        ("MERGE INTO notes USING (VALUES (1), (900)) v(id) ON notes.id = v.id WHEN MATCHED THEN DELETE"
         " WHEN NOT MATCHED THEN INSERT VALUES (v.id)", 100),
        ("SET session_replication_role = replica; INSERT INTO notes VALUES (200)", 101),
        ("VACUUM FULL notes", 100),
        ("ALTER TABLE notes ALTER text TYPE varchar(10)", 100),
        ("ALTER TABLE notes RENAME TO others; ALTER TABLE others RENAME TO notes", 100),
    ],
)  # fmt: skip
def test_every_statement_counts(connection: Connection, statement: str, rows: int) -> None:
    connection.execute(statement.encode())
    assert_exact(connection, rows)


def test_copy_cascade_and_rollback(connection: Connection) -> None:
    with connection.cursor().copy("COPY notes (id) FROM STDIN") as copy:
        copy.write("300\n301\n")
    assert_exact(connection, 102)
    connection.execute("CREATE TABLE child (id bigint REFERENCES notes ON DELETE CASCADE)")
    connection.execute("INSERT INTO child VALUES (1), (2), (2)")
    connection.execute("SELECT cdc.count_rows('child')")
    connection.execute("DELETE FROM notes WHERE id < 3")
    query = "SELECT table_name, rows FROM cdc.row_counts ORDER BY 1"
    assert connection.execute(query).fetchall() == [("public.child", 0), ("public.notes", 100)]
    with connection.transaction(force_rollback=True):
        connection.execute("TRUNCATE notes, child")
        assert_exact(connection, 0)
        with connection.transaction(force_rollback=True):
            connection.execute("INSERT INTO notes VALUES (7)")
            assert_exact(connection, 1)
        assert_exact(connection, 0)
    assert_exact(connection, 100)


def test_a_truncate_by_an_old_snapshot_is_refused(connection: Connection, database: str) -> None:
    """It removes rows that it does not see, so that nobody could tell how many."""
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT")
        connection.execute("INSERT INTO notes VALUES (200)")
        with pytest.raises(psycopg.errors.ActiveSqlTransaction):
            other.execute("TRUNCATE notes")
        other.execute("ROLLBACK")
        assert_exact(connection, 101)
        other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT")
        connection.execute("TRUNCATE notes")
        other.execute("INSERT INTO notes VALUES (200); COMMIT")  # which does not see the TRUNCATE
    assert_exact(connection, 1)


def test_nobody_waits(connection: Connection, database: str) -> None:
    """An open transaction has counted; others count, read and fold meanwhile, in any order of tables."""
    connection.execute("CREATE TABLE child (id bigint); SELECT cdc.count_rows('child')")
    with psycopg.connect(database) as first, psycopg.connect(database) as second:
        for isolation in (psycopg.IsolationLevel.READ_COMMITTED, psycopg.IsolationLevel.SERIALIZABLE):
            first.isolation_level = second.isolation_level = isolation
            second.execute("SET lock_timeout = '5s'")
            first.execute("INSERT INTO notes SELECT max(id) + 1 FROM notes")
            second.execute("INSERT INTO child VALUES (1)")
            second.execute("INSERT INTO notes VALUES (%s)", [500 + isolation.value])
            first.execute("INSERT INTO child VALUES (1)")
            prune(connection)
            second.commit()
            prune(connection)
            assert_exact(connection)
            first.rollback()
            assert_exact(connection)


def test_folding_makes_one_row_of_many(connection: Connection) -> None:
    for number in range(200, 220):
        connection.execute("INSERT INTO notes VALUES (%s)", [number])
    query = "SELECT rows, transactions FROM cdc.row_counts"
    assert connection.execute(query).fetchone() == (120, 21)
    assert prune(connection)["row_changes"] == 21
    assert connection.execute(query).fetchone() == (120, 1)
    with connection.transaction():  # within a transaction that has counted itself, and twice
        connection.execute("INSERT INTO notes VALUES (300)")
        prune(connection)
        connection.execute("INSERT INTO notes VALUES (301)")
        prune(connection)
    assert_exact(connection, 122)


def test_counting_ends(connection: Connection) -> None:
    connection.execute("SELECT cdc.uncount_rows('notes')")
    connection.execute("INSERT INTO notes VALUES (200)")
    assert connection.execute("SELECT * FROM cdc.row_counts").fetchall() == []
    assert connection.execute("SELECT cdc.count_rows('notes')").fetchone() == (101,)
    assert connection.execute("SELECT cdc.count_rows('notes')").fetchone() == (101,)  # again is no harm
    connection.execute("DROP TABLE notes")
    assert connection.execute("SELECT * FROM cdc.row_counts").fetchall() == []
    assert prune(connection)["row_changes"] == 1


def test_what_cannot_be_counted_is_refused(connection: Connection) -> None:
    connection.execute(
        "CREATE TABLE parted (id int) PARTITION BY LIST (id); CREATE TABLE part PARTITION OF parted DEFAULT"
    )
    connection.execute("CREATE TABLE heir () INHERITS (notes)")
    try:
        for name in ("parted", "part", "heir", "notes", "cdc.row_counts"):
            with pytest.raises(psycopg.errors.WrongObjectType):
                connection.execute("SELECT cdc.count_rows(%s)", [name])
    finally:
        connection.execute("DROP TABLE parted, heir")


def test_a_writer_needs_no_right_on_the_counters(connection: Connection) -> None:
    connection.execute("CREATE ROLE plain_writer; GRANT INSERT, DELETE, TRUNCATE, SELECT ON notes TO plain_writer")
    try:
        connection.execute("SET ROLE plain_writer")
        connection.execute("INSERT INTO notes VALUES (200); DELETE FROM notes WHERE id = 1; TRUNCATE notes")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("UPDATE cdc.row_changes SET rows = 1")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT cdc.fold_counts()")
        connection.execute("RESET ROLE")
        assert_exact(connection, 0)
    finally:
        connection.execute("RESET ROLE; DROP OWNED BY plain_writer; DROP ROLE plain_writer")


def test_writers_at_once(connection: Connection, database: str) -> None:
    """Each of them a fixed list of transactions; a reader compares while they run, and counters are folded."""
    chance, done = seeded("writers"), threading.Event()
    seeds = [chance.randrange(1 << 32) for _ in range(WRITERS)]
    with ThreadPoolExecutor(WRITERS + 1) as pool:
        looking = pool.submit(_look, database, done)
        try:
            for writer in [pool.submit(_write, database, number, seeds[number]) for number in range(WRITERS)]:
                writer.result()
        finally:
            done.set()
        assert looking.result() > 0
    assert_exact(connection)
    prune(connection)
    assert_exact(connection)


def _look(dsn: str, done: threading.Event) -> int:
    """Compares and folds until told to end; how often."""
    looks = 0
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not done.is_set():
            assert_exact(connection)
            prune(connection)
            looks += 1
    return looks


def _write(dsn: str, number: int, seed: int) -> None:
    chance, statements = random.Random(seed), 0
    with psycopg.connect(dsn, autocommit=True) as connection:
        for turn in range(TRANSACTIONS):
            with connection.transaction(force_rollback=chance.random() < 0.2):
                for _statement in range(chance.randint(1, 4)):
                    statements += 1
                    base = (number + 1) * 1_000_000 + statements * 1000
                    with connection.transaction(force_rollback=chance.random() < 0.2):
                        _change(connection, chance, base, first=turn % 20 == 19 and _statement == 0)


def _change(connection: Connection, chance: random.Random, base: int, *, first: bool) -> None:
    """`first`: nothing is locked yet, so that a TRUNCATE of several writers cannot lock them up in each other."""
    if first and chance.random() < 0.5:
        connection.execute("TRUNCATE notes")
    elif chance.random() < 0.6:
        connection.execute(
            "INSERT INTO notes SELECT %s + n FROM generate_series(1, %s) n", [base, chance.randint(0, 50)]
        )
    else:
        connection.execute(
            "DELETE FROM notes WHERE id IN (SELECT id FROM notes WHERE id / 1000000 = %s ORDER BY id LIMIT %s)",
            [base // 1_000_000, chance.randint(0, 30)],
        )
