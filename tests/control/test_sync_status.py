"""Which stores have which row: never "there" for one that is not, whatever transactions do meanwhile."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psycopg
import pytest

from cdc.control import incidents, status
from cdc.control.watermarks import Watermark, record
from tests.chance import seeded
from tests.control.sync_status import TABLE, Store, held, one, put

MARKS = 400
WRITERS = 4


def test_a_row_is_there_when_the_watermark_has_passed_it(
    connect: Callable[[], psycopg.Connection], store: Store
) -> None:
    observer = connect()
    put(observer, 1)
    assert held(observer) == {1: False}  # no store is known at all
    store.follow()
    assert held(observer) == {1: True}
    put(observer, 2)
    behind = store.lsn
    store.reach(behind)
    store.reach(behind)  # marks are taken, and not reached
    assert held(observer) == {1: True, 2: False}
    store.follow()
    put(observer, 1)  # a new version of the row
    assert held(observer) == {1: False, 2: True}
    store.follow()
    assert held(observer) == {1: True, 2: True}


def test_nothing_is_written_per_record(connect: Callable[[], psycopg.Connection], store: Store) -> None:
    observer = connect()
    observer.execute("INSERT INTO notes SELECT n FROM generate_series(1, 500) n")
    before = one(observer, "SELECT array_agg(ctid::text || xmin || xmax) FROM notes")
    store.follow()
    assert set(held(observer).values()) == {True}
    assert one(observer, "SELECT array_agg(ctid::text || xmin || xmax) FROM notes") == before
    assert one(observer, "SELECT count(*) FROM cdc.watermarks") == (1,)


def test_a_savepoint_of_a_running_transaction(connect: Callable[[], psycopg.Connection], store: Store) -> None:
    """The row's id is the savepoint's, which no snapshot lists; a later transaction has pushed xmax beyond it."""
    writer, other, observer = connect(), connect(), connect()
    with writer.transaction():
        put(writer, 1)
        with writer.transaction():  # a savepoint
            put(writer, 2)
            with writer.transaction():
                put(writer, 3)
        put(other, 4)
        store.follow()
        store.follow()
        assert held(observer) == {4: True}  # although an older transaction still runs
        assert held(writer) == dict.fromkeys(
            (1, 2, 3, 4), False
        )  # what is newer than itself it cannot tell from its own
        behind = store.now()
    assert held(observer)[2] is False
    store.reach(behind)  # it has everything before the commit, and not the commit
    assert {key: held(observer)[key] for key in (1, 2, 3)} == {1: False, 2: False, 3: False}
    store.follow()
    assert held(observer) == {1: True, 2: True, 3: True, 4: True}


def test_rows_of_ones_own_transaction(connect: Callable[[], psycopg.Connection], store: Store) -> None:
    writer = connect()
    put(writer, 1)
    store.follow()
    for isolation in ("READ COMMITTED", "REPEATABLE READ"):
        writer.execute(f"BEGIN ISOLATION LEVEL {isolation}".encode())
        assert held(writer) == {1: True}
        put(writer, 2)
        with writer.transaction():
            put(writer, 3)
        store.follow()
        assert held(writer) == {1: True, 2: False, 3: False}
        writer.execute("ROLLBACK")


def test_a_mark_is_no_part_of_a_transaction_that_writes(connect: Callable[[], psycopg.Connection]) -> None:
    """Its snapshot would not show the transaction it is in as running."""
    writer = connect()
    writer.execute("BEGIN")
    put(writer, 1)
    with pytest.raises(psycopg.errors.ActiveSqlTransaction):
        writer.execute("SELECT cdc.mark()")


def test_frozen_rows(connect: Callable[[], psycopg.Connection], store: Store) -> None:
    observer = connect()
    with observer.transaction():
        observer.execute("TRUNCATE notes")
        with observer.cursor().copy("COPY notes FROM STDIN (FREEZE)") as copy:
            copy.write("1\tcopied\n")
    assert held(observer) == {1: False}
    put(observer, 2)
    observer.execute("VACUUM FREEZE notes")
    assert held(observer) == {1: False, 2: False}  # frozen, and not in the store
    store.follow()
    assert held(observer) == {1: True, 2: True}


@pytest.mark.parametrize("nearest", [3, 1 << 31, (1 << 32) - 5, 1 << 32, (7 << 32) + 1000, (1 << 40) - 3])
def test_ids_beyond_32_bits(connect: Callable[[], psycopg.Connection], nearest: int) -> None:
    """Every id that a living row can have, told from its low 32 bits; 0, 1 and 2 are given to no transaction."""
    observer, chance = connect(), seeded("ids")
    ages = [1, 2, 3, 1000, (1 << 31) - 1, *(chance.randrange(1, 1 << 31) for _ in range(200))]
    for next_xid in (nearest, nearest + 1000):
        ids = [next_xid - age for age in ages if next_xid - age >= 3 and (next_xid - age) % (1 << 32) >= 3]
        query = "SELECT array_agg(cdc.whole_xid(i & 4294967295, %s, w) ORDER BY n) FROM unnest(%s::bigint[])"
        for writing in (False, True):
            assert one(
                observer, query.replace("w)", "%s)", 1) + " WITH ORDINALITY u(i, n)", next_xid, writing, ids
            ) == (ids or None,)
        ahead = [next_xid + age for age in (0, 1, 5)]  # those of our own transaction
        assert one(observer, f"{query.replace('w)', 'true)', 1)} WITH ORDINALITY u(i, n)", next_xid, ahead) == (
            [None if i % (1 << 32) >= 3 else 0 for i in ahead],
        )


@pytest.mark.parametrize("why", ["incomplete", "another history", "a restored dump", "nothing", "beyond the log"])
def test_what_a_watermark_does_not_prove(connect: Callable[[], psycopg.Connection], store: Store, why: str) -> None:
    observer = connect()
    put(observer, 1)
    store.follow()
    assert held(observer) == {1: True}
    if why == "incomplete":
        store.reach(store.now(), complete=False)
    elif why == "another history":
        store.history = "1/1/1"
        store.follow()
    elif why == "a restored dump":
        observer.execute("UPDATE cdc.watermarks SET history = '1/1/1'")
    elif why == "beyond the log":
        store.reach(store.now() + (1 << 40))
    else:
        record(observer, [Watermark("redis", TABLE, None, None, False)])
    assert held(observer) == {1: False}


def test_an_open_letter_keeps_its_row_out(connect: Callable[[], psycopg.Connection], store: Store) -> None:
    observer, now = connect(), datetime.datetime.now(datetime.UTC)
    for key in (1, 2):
        put(observer, key)
    store.follow()
    letter = incidents.Letter(
        id="t:0:5:", store="redis", table=TABLE, key={"id": 2}, reason="dimension", message="3 of 8", topic="t",
        partition=0, offset=5, position=None, refused_at=now,
    )  # fmt: skip
    incidents.mirror_letters(observer, [letter])
    assert held(observer) == {1: True, 2: False}
    found = status.check(observer, TABLE, {"id": 2})
    assert (found.present, found.stores, found.lacking) == (True, [], ["redis"])
    assert [one["reason"] for one in found.letters] == ["dimension"]
    closed = replace(letter, closed_at=now, outcome="redriven")
    incidents.mirror_letters(observer, [closed])
    assert held(observer) == {1: True, 2: True}
    incidents.mirror_letters(observer, [replace(letter, store="faiss")])  # another store's
    assert held(observer) == {1: True, 2: True}
    incidents.mirror_letters(observer, [replace(letter, id="too large", store="reader")])  # in no store
    assert held(observer) == {1: True, 2: False}


def test_the_table_stays_its_owners(connect: Callable[[], psycopg.Connection], store: Store) -> None:
    """The view depends on nothing of it: the key's type can change, and the table can go."""
    observer = connect()
    observer.execute("ALTER TABLE notes ALTER id TYPE text")
    with pytest.raises(psycopg.errors.InvalidFunctionDefinition):
        held(observer)
    observer.execute("SELECT cdc.track('public.notes')")
    observer.execute("INSERT INTO notes VALUES ('a')")
    store.follow()
    assert list(held(observer).values()) == [True]
    observer.execute("DROP TABLE notes")
    assert [found.source_rows for found in status.statistics(observer)] == [None]


def test_a_key_that_letters_would_not_name_is_refused(connect: Callable[[], psycopg.Connection]) -> None:
    observer = connect()
    observer.execute("CREATE TABLE odd (at timestamptz PRIMARY KEY); CREATE TABLE keyless (id integer)")
    for table in ("odd", "keyless"):
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            observer.execute("SELECT cdc.track(%s)", [f"public.{table}"])


def test_partitions_and_odd_names(connect: Callable[[], psycopg.Connection]) -> None:
    observer = connect()
    observer.execute(
        'CREATE SCHEMA "O dd"; CREATE TABLE "O dd"."it\'s" ("a ""key" text, "second" uuid,'
        ' PRIMARY KEY ("a ""key", "second"))'
        ' PARTITION BY LIST ("a ""key"); CREATE TABLE part PARTITION OF "O dd"."it\'s" DEFAULT'
    )
    observer.execute("""SELECT cdc.track('"O dd"."it''s"', 'odd')""")
    key = {'a "key': "x'y", "second": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}
    observer.execute('INSERT INTO "O dd"."it\'s" VALUES (%s, %s)', list(key.values()))
    assert one(observer, "SELECT stores, lacking FROM cdc.odd") == ([], [])
    assert status.check(observer, "O dd.it's", key).present
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        status.check(observer, "O dd.it's", {"second": key["second"]})


def test_one_row_is_found_by_the_index(connect: Callable[[], psycopg.Connection], store: Store) -> None:
    observer = connect()
    observer.execute("INSERT INTO notes SELECT n FROM generate_series(1, 5000) n; ANALYZE notes")
    plan = observer.execute("EXPLAIN SELECT * FROM cdc.notes_sync_status WHERE id = 7").fetchall()
    assert any("notes_pkey" in line for (line,) in plan), plan


def test_statistics(connect: Callable[[], psycopg.Connection], store: Store) -> None:
    observer = connect()
    for key in (1, 2, 3):
        put(observer, key)
    store.follow()
    put(observer, 3)
    record(observer, [Watermark("faiss", TABLE, None, None, False)])
    faiss, redis = status.statistics(observer)
    assert (faiss.store, faiss.source_rows, faiss.covered_rows, faiss.complete) == ("faiss", 3, 0, False)
    assert (faiss.lag_seconds, faiss.lag_bytes, faiss.store_rows) == (None, None, None)  # unknown is not 0
    assert (redis.source_rows, redis.covered_rows, redis.store_rows, redis.parked) == (3, 2, 0, 0)
    assert redis.lag_bytes is not None
    assert redis.lag_bytes > 0


def test_marks_are_thinned_out(connect: Callable[[], psycopg.Connection], store: Store) -> None:
    """A store that is away for days costs no table without end."""
    observer = connect()
    store.follow()
    stays = store.lsn
    observer.execute(
        "INSERT INTO cdc.marks SELECT visible_lsn + n, visible, history FROM cdc.watermarks, generate_series(1, 1100) n"
    )
    put(observer, 1)
    observer.execute("SELECT cdc.mark()")
    assert one(observer, "SELECT count(*) BETWEEN 500 AND 600 FROM cdc.marks") == (True,)
    assert one(observer, "SELECT min(m.lsn) <= visible_lsn FROM cdc.marks m, cdc.watermarks GROUP BY visible_lsn") == (
        True,
    )
    assert store.lsn == stays
    store.follow()
    assert held(observer) == {1: True}
    store.reach(store.now())
    assert one(observer, "SELECT count(*) < 5 FROM cdc.marks") == (True,)


def test_what_a_mark_sees_lies_before_its_end(connect: Callable[[], psycopg.Connection], database: str) -> None:
    """While others commit; the log itself, decoded, is the witness."""
    marker, done = connect(), threading.Event()
    marker.execute("SELECT pg_create_logical_replication_slot('witness', 'test_decoding')")

    def write(number: int) -> int:
        written = 0
        with psycopg.connect(database, autocommit=True, options="-c synchronous_commit=off") as own:
            while not done.is_set():
                own.execute("INSERT INTO notes VALUES (%s)", [number * 1_000_000 + written])
                written += 1
        return written

    with ThreadPoolExecutor(WRITERS) as pool:
        writing = [pool.submit(write, number) for number in range(WRITERS)]
        try:
            marks = [one(marker, "SELECT cdc.mark()")[0] for _ in range(MARKS)]
        finally:
            done.set()
        assert sum(written.result() for written in writing) > 0
    marker.execute(
        "CREATE TEMP TABLE commits AS SELECT xid::text::xid8 AS xid, lsn"
        " FROM pg_logical_slot_get_changes('witness', NULL, NULL) WHERE data LIKE 'COMMIT %'"
    )
    marker.execute("SELECT pg_drop_replication_slot('witness')")
    seen, late = one(
        marker,
        "SELECT count(*), count(*) FILTER (WHERE c.lsn > m.lsn)"
        " FROM cdc.marks m JOIN commits c ON pg_visible_in_snapshot(c.xid, m.snapshot)",
    )
    assert len(set(marks)) == one(marker, "SELECT count(*) FROM cdc.marks")[0]
    assert seen > MARKS
    assert late == 0
