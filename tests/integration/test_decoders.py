"""wal2json and pgoutput say the same of the same workload, for every type and through every kind of change."""

from __future__ import annotations

import base64
import hmac
from functools import partial
from typing import Any

import pytest
from psycopg import sql

from cdc.envelope import decode_floats
from cdc.source.events import NULL, UNCHANGED, UNKNOWN, Begin, Commit, Message, Row
from tests.decoding import Decoding
from tests.type_samples import SETUP, columns, create, inserts, text_of

LONG = "repeat('long ', 2000)"  # over the TOAST threshold of 2 kB, even when compressed: storage is external


def fragments(row: Row, names: str) -> list[Any]:
    """The new row's values of some columns."""
    assert row.new is not None
    at = {column.name: i for i, column in enumerate(row.table.columns)}
    return [row.new[at[name]] for name in names.split()]


@pytest.mark.parametrize("full", [False, True], ids=["by key", "full"])
def test_every_type(make_decoding: Any, full: bool) -> None:
    decoding = make_decoding()
    decoding.run(SETUP)
    decoding.connection.execute(create("every").encode())
    if full:
        decoding.run("ALTER TABLE every REPLICA IDENTITY FULL")
    decoding.both()
    for statement, values in inserts("every"):
        decoding.connection.execute(statement, values)
    rows = decoding.rows()
    assert len(rows) == len(inserts("every"))
    check_loads_back(decoding, rows)
    check_selected_text(decoding, rows)
    decoding.run("UPDATE every SET id = id + 100;\nDELETE FROM every WHERE id > 102")
    changes = decoding.rows()
    assert {row.op for row in changes} == {"u", "d"}
    assert all(row.old is not None for row in changes)
    for before, after in zip(rows, changes, strict=False):
        assert after.new is not None
        assert before.new is not None
        assert list(after.new[1:]) == list(before.new[1:])


def check_loads_back(decoding: Decoding, rows: list[Row]) -> None:
    """Each wire form gives, cast to its type, the text of what is stored."""
    for row in rows:
        assert row.new is not None
        for (name, kind), fragment in zip(columns(), row.new[1:], strict=True):
            value = text_of(fragment, kind)
            query = sql.SQL(
                "SELECT format('%%s', {0}) = format('%%s', %s::text::{1}), {0} IS NULL FROM every WHERE id = %s"
            )
            found = decoding.connection.execute(
                query.format(sql.Identifier(name), sql.SQL(kind)), [value, int(row.new[0])]
            ).fetchone()
            assert found is not None
            assert found[0], (kind, fragment)
            assert value is None or kind == "pair" or not found[1], (kind, fragment)


def check_selected_text(decoding: Decoding, rows: list[Row]) -> None:
    """A SELECT of `text_columns` gives, through the codecs, what the stream gave."""
    catalog = decoding.catalogs["pgoutput"]
    table = catalog.table("public", "every")
    query = sql.SQL("SELECT {} FROM every ORDER BY id").format(sql.SQL(", ").join(catalog.text_columns(table)))
    selected = decoding.connection.execute(query).fetchall()
    for row, values in zip(rows, selected, strict=True):
        for column, streamed, text in zip(table.columns, row.new or (), values, strict=True):
            assert streamed == (NULL if text is None else column.codec(text.encode())), column


def test_null_stands_for_what_wal2json_cannot_say(make_decoding: Any) -> None:
    decoding = make_decoding()
    decoding.run(
        "CREATE DOMAIN ratio AS real;\nCREATE TABLE t (id int PRIMARY KEY, r real NOT NULL, n numeric, d ratio)"
    )
    decoding.run("INSERT INTO t VALUES (1, 'NaN', NULL, 'NaN'), (2, 1, 'Infinity', '-Infinity')")
    first, second = (event for event in decoding.events("wal2json") if isinstance(event, Row))
    assert first.new == [b"1", UNKNOWN, UNKNOWN, b'"NaN"']
    assert second.new == [b"2", b"1", UNKNOWN, b'"-Infinity"']
    assert [column.nonfinite for column in first.table.columns] == [False, True, True, False]
    (first, second) = (event for event in decoding.events("pgoutput") if isinstance(event, Row))
    assert first.new == [b"1", b'"NaN"', NULL, b'"NaN"']


def test_boundaries_name_commit_and_end(make_decoding: Any) -> None:
    decoding = make_decoding()
    decoding.run("CREATE TABLE t (id int PRIMARY KEY)")
    decoding.both()
    decoding.run("INSERT INTO t VALUES (1)")
    begin, _, commit = decoding.both()
    assert isinstance(begin, Begin)
    assert isinstance(commit, Commit)
    row = decoding.connection.execute(
        "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, (pg_current_wal_lsn() - '0/0')::bigint"
    ).fetchone()
    assert row is not None
    assert 0 <= row[0] - begin.commit_us < 60_000_000
    assert begin.commit_lsn == commit.commit_lsn < commit.end_lsn <= row[1]


def test_messages_of_ours_only(make_decoding: Any) -> None:
    decoding = make_decoding()
    for transactional in ("false", "true"):  # the other way round the last one might not be flushed yet
        decoding.run(f"SELECT pg_logical_emit_message({transactional}, 'memory-cdc', 'héllo \"q\"')")
        decoding.run(f"SELECT pg_logical_emit_message({transactional}, 'other', '1')")
    messages = [event for event in decoding.both() if isinstance(event, Message)]
    assert messages == [Message("memory-cdc", 'héllo "q"'.encode(), transactional) for transactional in (False, True)]


def test_unchanged_toast_by_key_and_full(make_decoding: Any) -> None:
    decoding = make_decoding()
    decoding.run(
        "CREATE TABLE t (id int PRIMARY KEY, body text, n int);\nALTER TABLE t ALTER body SET STORAGE EXTERNAL;\n"
        f"INSERT INTO t VALUES (1, {LONG}, 1)"
    )
    (inserted,) = decoding.rows()
    decoding.run("UPDATE t SET n = 2;\nUPDATE t SET id = 2")
    updated, moved = decoding.rows()
    assert updated.new == [b"1", UNCHANGED, b"2"]
    assert updated.old is None
    assert moved.new == [b"2", UNCHANGED, b"2"]
    assert moved.old == [b"1", UNCHANGED, UNCHANGED]
    decoding.run("ALTER TABLE t REPLICA IDENTITY FULL;\nUPDATE t SET n = 3;\nUPDATE t SET id = 3;\nDELETE FROM t")
    updated, moved, deleted = decoding.rows()
    body = fragments(inserted, "body")[0]
    assert updated.new == [b"2", body, b"3"]
    assert updated.old is None
    assert moved.new == [b"3", body, b"3"]
    assert moved.old == [b"2", body, b"3"]
    assert deleted.old == [b"3", body, b"3"]
    assert updated.table.full


def test_savepoints_and_rollbacks_leave_no_trace(make_decoding: Any) -> None:
    decoding = make_decoding()
    decoding.run("CREATE TABLE t (id int PRIMARY KEY)")
    decoding.both()
    decoding.run(
        "BEGIN;\nINSERT INTO t VALUES (1);\nSAVEPOINT a;\nINSERT INTO t VALUES (2);\nROLLBACK TO a;\n"
        "INSERT INTO t VALUES (3);\nCOMMIT;\nBEGIN;\nINSERT INTO t VALUES (4);\nROLLBACK"
    )
    assert [row.new for row in decoding.rows()] == [[b"1"], [b"3"]]


def test_odd_names(make_decoding: Any) -> None:
    decoding = make_decoding()
    decoding.run(
        'CREATE TABLE "Weird ""table% {}" ("Key %s" int, "weird ""name%" text, "ü,\\" int, '
        'PRIMARY KEY ("weird ""name%", "Key %s"));\n'
        'INSERT INTO "Weird ""table% {}" VALUES (1, \'x\', 2)'
    )
    (row,) = decoding.rows()
    assert row.new is not None
    assert row.table.key == (1, 0)
    after = b"{" + row.table.row_template % tuple(row.new) + b"}"
    assert after == '{"Key %s":1,"weird \\"name%":"x","ü,\\\\":2}'.encode()
    key = row.table.key_template % tuple(row.new[i] for i in row.table.key)
    assert key == b'{"weird \\"name%":"x","Key %s":1}'


def test_a_check_that_keeps_nan_out_makes_null_certain(make_decoding: Any) -> None:
    decoding = make_decoding()
    decoding.run(
        'CREATE TABLE t (id int PRIMARY KEY, "a % b" real CHECK ("a % b" BETWEEN 0 AND 1), b real CHECK (b > 0), '
        "c numeric(5,2) CHECK (c < 10 AND c > -10), d float8, e float8 CHECK (sqrt(e) > 0));\nINSERT INTO t VALUES (1)"
    )
    (row,) = (event for event in decoding.events("wal2json") if isinstance(event, Row))
    assert row.new == [b"1", NULL, UNKNOWN, NULL, UNKNOWN, UNKNOWN]
    (row,) = (event for event in decoding.events("pgoutput") if isinstance(event, Row))
    assert [column.nonfinite for column in row.table.columns] == [False, False, True, False, True, True]


def test_generated_columns_stay(make_decoding: Any) -> None:
    decoding = make_decoding()
    decoding.run(
        "CREATE TABLE t (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED, x text);\n"
        "INSERT INTO t (id, x) VALUES (1, 'x')"
    )
    (row,) = decoding.rows()
    assert row.new == [b"1", b'"x"']


def test_columns_are_selected_and_masked(make_decoding: Any) -> None:
    settings = {
        "columns": ["*"],
        "exclude": ["secret*"],
        "mask": {"email": "hash", "phone": "redact", "ssn": "drop", "flag": "hash", "raw": "hash", "n": "hash"},
        "version_column": "versions",
    }
    decoding = make_decoding(tables={"public.t": settings}, mask_secret="key")
    decoding.run(
        "CREATE TABLE t (ssn text, id int PRIMARY KEY, email text, phone text, secret_x text, flag bool, raw bytea, "
        "n numeric, versions jsonb);\n"
        "INSERT INTO t VALUES ('1', 1, E'a\\n@b', '2', '3', true, '\\x01ff', 1.50, '{\"a\": 1}');\n"
        "INSERT INTO t VALUES (NULL, 2)"
    )
    first, second = decoding.rows()
    mac = partial(hmac.digest, b"key", digest="sha256")
    assert [column.name for column in first.table.columns] == ["id", "email", "phone", "flag", "raw", "n", "versions"]
    hashed = [b'"%b"' % mac(text).hex().encode() for text in (b"a\n@b", b"t", b"\\x01ff", b"1.50")]
    assert first.new == [b"1", hashed[0], b'"***"', *hashed[1:], b'"{\\"a\\": 1}"']
    assert second.new == [b"2", *[NULL] * 6]
    assert first.table.version_index == 6
    assert [column.masked for column in first.table.columns] == [False, True, True, True, True, True, False]


def test_vectors(make_decoding: Any) -> None:
    tables = {"public.a": {"vector": "v"}, "public.b": {"vector": "v"}, "public.c": {"vector": "v"}}
    decoding = make_decoding(tables=tables)
    decoding.run(
        "CREATE TABLE a (id int PRIMARY KEY, v real[], w real[]);\nCREATE TABLE b (id int PRIMARY KEY, v float8[]);\n"
        "CREATE TABLE c (id int PRIMARY KEY, v numeric[]);\n"
        "INSERT INTO a VALUES (1, '{0.1,-2e-8,NaN}', '{1}'), (2, '[3:4]={1,2}', NULL), (3, '{1,NULL}', NULL), "
        "(4, '{{1,2}}', NULL), (5, NULL, NULL), (6, '{}', NULL);\n"
        "INSERT INTO b VALUES (1, '{0.1,1e300,-Infinity}');\nINSERT INTO c VALUES (1, '{0.10,2,1e300}')"
    )
    rows = decoding.rows()
    one, two, three, four, five, six, double, number = (fragments(row, "v")[0] for row in rows)
    assert str(decode_floats(one[1:-1]).tolist()) == "[0.10000000149011612, -1.999999987845058e-08, nan]"
    assert decode_floats(two[1:-1]).tolist() == [1, 2]
    assert (three, four, five, six) == (b"[1,null]", b"[[1,2]]", NULL, b'"f32:"')
    assert fragments(rows[0], "w") == [b"[1]"]
    assert double[:5] == b'"f64:'
    assert len(base64.b64decode(double[5:-1])) == 24
    assert number[:5] == b'"f32:'


def test_pgvector(database18: str) -> None:
    decoding = Decoding(database18, plugins=("pgoutput",))
    try:
        decoding.run(
            "CREATE EXTENSION vector;\nCREATE DOMAIN embedding AS vector(3);\n"
            "CREATE TABLE t (id int PRIMARY KEY, v vector(3), h halfvec(2), s sparsevec(5), d embedding, l vector[]);\n"
            "INSERT INTO t VALUES (1, '[1,2.5,-3e-9]', '[0.5,65504]', '{1:1,3:2}/5', '[1,2,3]', ARRAY['[1,2]'::vector])"
        )
        (row,) = (event for event in decoding.events("pgoutput") if isinstance(event, Row))
        v, h, s, d, many = fragments(row, "v h s d l")
        assert decode_floats(v[1:-1]).tolist() == [1.0, 2.5, pytest.approx(-3e-9)]
        assert decode_floats(h[1:-1]).tolist() == [0.5, 65504]
        assert s == b'"{1:1,3:2}/5"'
        assert decode_floats(d[1:-1]).tolist() == [1, 2, 3]
        assert many.startswith(b'["f32:')
        for name, fragment, kind in (("v", v, "vector"), ("h", h, "halfvec"), ("s", s, "sparsevec")):
            query = sql.SQL("SELECT {} = %s::text::{} FROM t").format(sql.Identifier(name), sql.SQL(kind))
            assert decoding.connection.execute(query, [text_of(fragment, kind)]).fetchone() == (True,)
    finally:
        decoding.close()


def test_every_type_on_18(database18: str) -> None:
    """Another version of the server, whose wheel lacks hstore and citext."""
    decoding = Decoding(database18, plugins=("pgoutput",))
    try:
        decoding.run(
            "CREATE TABLE u (id int PRIMARY KEY, n numeric, i interval, g int GENERATED ALWAYS AS (id) STORED)"
        )
        decoding.run("INSERT INTO u VALUES (1, 'NaN', '-infinity')")
        (row,) = (event for event in decoding.events("pgoutput") if isinstance(event, Row))
        assert row.new == [b"1", b'"NaN"', b'"-infinity"']
    finally:
        decoding.close()
