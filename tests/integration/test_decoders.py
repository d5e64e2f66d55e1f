"""wal2json and pgoutput say the same of the same workload, for every type and through every kind of change."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg import sql

from cdc.config import parse
from cdc.envelope import decode_floats
from cdc.errors import ConfigError, ConnectError, PreconditionError
from cdc.source.catalog import Catalog
from cdc.source.events import NULL, UNCHANGED, UNKNOWN, Begin, Commit, Message, Row, Truncate
from tests.decoding import Decoding, dropped
from tests.type_samples import SETUP, columns, create, inserts, text_of

LONG = "repeat('long ', 2000)"  # over the TOAST threshold of 2 kB, even when compressed: storage is external


@pytest.fixture
def clean(database: str) -> str:
    """The module's database with an empty schema public."""
    with psycopg.connect(database, autocommit=True) as connection:
        dropped(connection)
    return database


@pytest.fixture
def make(clean: str) -> Iterator[Any]:
    """Builds a Decoding; closed afterwards."""
    made: list[Decoding] = []

    def build(**settings: Any) -> Decoding:
        made.append(Decoding(clean, **settings))
        return made[-1]

    yield build
    for decoding in made:
        decoding.close()


def fragments(row: Row, names: str) -> list[Any]:
    """The new row's values of some columns."""
    assert row.new is not None
    at = {column.name: i for i, column in enumerate(row.table.columns)}
    return [row.new[at[name]] for name in names.split()]


@pytest.mark.parametrize("full", [False, True], ids=["by key", "full"])
def test_every_type(make: Any, full: bool) -> None:
    decoding = make()
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


def test_null_stands_for_what_wal2json_cannot_say(make: Any) -> None:
    decoding = make()
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


def test_boundaries_name_commit_and_end(make: Any) -> None:
    decoding = make()
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


def test_messages_of_ours_only(make: Any) -> None:
    decoding = make()
    for transactional in ("false", "true"):  # the other way round the last one might not be flushed yet
        decoding.run(f"SELECT pg_logical_emit_message({transactional}, 'memory-cdc', 'héllo \"q\"')")
        decoding.run(f"SELECT pg_logical_emit_message({transactional}, 'other', '1')")
    messages = [event for event in decoding.both() if isinstance(event, Message)]
    assert messages == [Message("memory-cdc", 'héllo "q"'.encode(), transactional) for transactional in (False, True)]


def test_unchanged_toast_by_key_and_full(make: Any) -> None:
    decoding = make()
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


def test_savepoints_and_rollbacks_leave_no_trace(make: Any) -> None:
    decoding = make()
    decoding.run("CREATE TABLE t (id int PRIMARY KEY)")
    decoding.both()
    decoding.run(
        "BEGIN;\nINSERT INTO t VALUES (1);\nSAVEPOINT a;\nINSERT INTO t VALUES (2);\nROLLBACK TO a;\n"
        "INSERT INTO t VALUES (3);\nCOMMIT;\nBEGIN;\nINSERT INTO t VALUES (4);\nROLLBACK"
    )
    assert [row.new for row in decoding.rows()] == [[b"1"], [b"3"]]


def test_odd_names(make: Any) -> None:
    decoding = make()
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


@pytest.mark.parametrize("via_root", [False, True], ids=["leaves published", "via root"])
def test_partitions_travel_as_their_root(make: Any, via_root: bool) -> None:
    decoding = make(via_root=via_root)
    decoding.run(
        "CREATE TABLE p (id int, kind text, x int, PRIMARY KEY (id, kind)) PARTITION BY LIST (kind);\n"
        "CREATE TABLE p_a PARTITION OF p FOR VALUES IN ('a');\n"
        "CREATE TABLE p_b (x int, gone int, kind text NOT NULL, id int NOT NULL);\nALTER TABLE p_b DROP gone;\n"
        "ALTER TABLE p ATTACH PARTITION p_b FOR VALUES IN ('b');\n"
        "CREATE TABLE p_c PARTITION OF p FOR VALUES IN ('c') PARTITION BY RANGE (id);\n"
        "CREATE TABLE p_c1 PARTITION OF p_c FOR VALUES FROM (0) TO (10);\n"
        "INSERT INTO p VALUES (1, 'a', 5), (2, 'b', 6), (3, 'c', 7);\nUPDATE p SET kind = 'b' WHERE id = 1;\n"
        "UPDATE p SET x = 8;\nTRUNCATE p"
    )
    events = [event for event in decoding.both() if isinstance(event, Row | Truncate)]
    rows = [event for event in events if isinstance(event, Row)]
    assert {(row.table.schema, row.table.name) for row in rows} == {("public", "p")}
    assert {tuple(column.name for column in row.table.columns) for row in rows} == {("id", "kind", "x")}
    assert [row.op for row in rows] == ["c", "c", "c", "d", "c", "u", "u", "u"]
    assert rows[4].new == [b"1", b'"b"', b"5"]
    assert isinstance(events[-1], Truncate)
    assert [table.name for table in events[-1].tables] == ["p"]


PARTITIONED = (
    "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);\n"
    "CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (10);\n"
    "CREATE TABLE p_2 PARTITION OF p FOR VALUES FROM (10) TO (20)"
)


def test_truncate_of_one_partition_stops(make: Any) -> None:
    decoding = make()
    decoding.run(PARTITIONED)
    decoding.both()
    decoding.run("TRUNCATE p_1")
    for plugin in decoding.slots:
        with pytest.raises(PreconditionError, match=r"public\.p_1 was truncated without public\.p") as caught:
            decoding.events(plugin)
        assert "DELETE" in caught.value.hint


@pytest.mark.parametrize("statement", ["TRUNCATE p", "TRUNCATE p_1, p", "TRUNCATE p_1, p_2", "TRUNCATE p_2, p_1, p"])
@pytest.mark.parametrize("via_root", [False, True], ids=["leaves published", "via root"])
def test_truncate_of_a_root(make: Any, statement: str, via_root: bool) -> None:
    decoding = make(via_root=via_root)
    decoding.run(PARTITIONED)
    decoding.both()
    decoding.run(f"BEGIN;\n{statement};\n{statement};\nINSERT INTO p VALUES (1);\nCOMMIT")
    if via_root and "p_2" in statement and not statement.endswith("p"):
        assert [type(event) for event in decoding.events("pgoutput")] == [Begin, Row, Commit]  # it does not send it
        return
    _, first, second, *_ = decoding.both()
    for event in (first, second):
        assert isinstance(event, Truncate)
        assert [table.name for table in event.tables] == ["p"]


def test_truncate_of_several_tables(make: Any) -> None:
    decoding = make(postgres={"tables": ["public.a", "public.p", "public.b*"]})
    decoding.run(
        "CREATE TABLE a (id int PRIMARY KEY);\nCREATE TABLE b (id int PRIMARY KEY);\nCREATE TABLE other (id int);\n"
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);\n"
        "CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (10);\nTRUNCATE a, other, p, b;\nTRUNCATE other"
    )
    truncated = [event.tables[0].name for event in decoding.both() if isinstance(event, Truncate)]
    assert truncated == ["a", "p", "b"]


DDL = [
    "ALTER TABLE t ADD extra text DEFAULT 'x'",
    f"ALTER TABLE t ADD late text;\nALTER TABLE t ALTER late SET STORAGE EXTERNAL;\nUPDATE t SET late = {LONG}",
    "ALTER TABLE t RENAME body TO text_body",
    "ALTER TABLE t DROP late",
    "ALTER TABLE t ALTER n TYPE text",
    "ALTER TABLE t ADD late int",
    "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (n)",
    "ALTER TABLE t ALTER n TYPE bigint USING n::bigint",
    "ALTER TABLE t RENAME n TO number",
]


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
def test_ddl_in_the_stream(make: Any, identity: str) -> None:
    """Each change is read before the next, as a reader that keeps up does."""
    decoding = make()
    decoding.run(
        "CREATE TABLE t (id int PRIMARY KEY, body text, n int);\nALTER TABLE t ALTER body SET STORAGE EXTERNAL;\n"
        f"ALTER TABLE t REPLICA IDENTITY {identity};\nINSERT INTO t VALUES (1, {LONG}, 1)"
    )
    decoding.both()
    for ddl in DDL:
        decoding.run(ddl)
        decoding.run("UPDATE t SET id = id + 1")
        decoding.rows()
        insert = sql.SQL("INSERT INTO t (id, {}) VALUES (100, 100)").format(sql.Identifier(key(decoding)))
        decoding.connection.execute(insert)
        decoding.run("DELETE FROM t WHERE id = 100")
        row, *_ = decoding.rows()
        names = [column.name for column in row.table.columns]
        assert names == present(decoding)


def key(decoding: Decoding) -> str:
    """The column that is n, whatever it is called now."""
    return next(name for name in present(decoding) if name in ("n", "number"))


def present(decoding: Decoding) -> list[str]:
    """The columns of t now."""
    query = (
        "SELECT attname FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY 1"
    )
    query = query.replace("ORDER BY 1", "ORDER BY attnum")
    return [name for (name,) in decoding.connection.execute(query).fetchall()]


def test_ddl_while_rows_wait_under_full(make: Any) -> None:
    """The catalog is far ahead of the rows: under REPLICA IDENTITY FULL every row still shows what it had."""
    decoding = make()
    decoding.run("CREATE TABLE t (id int PRIMARY KEY, body text, n int);\nALTER TABLE t REPLICA IDENTITY FULL")
    decoding.run("ALTER TABLE t ALTER body SET STORAGE EXTERNAL")
    decoding.run("INSERT INTO t VALUES (1, repeat('long ', 2000), 1);\nUPDATE t SET n = 2")
    for ddl in DDL[:5]:
        decoding.run(ddl)
        decoding.run("UPDATE t SET id = id + 1;\nINSERT INTO t (id) VALUES (100);\nDELETE FROM t WHERE id = 100")
    shapes = list(dict.fromkeys(tuple(c.name for c in row.table.columns) for row in decoding.rows()))
    assert shapes == [
        ("id", "body", "n"),
        ("id", "body", "n", "extra"),
        ("id", "body", "n", "extra", "late"),
        ("id", "text_body", "n", "extra", "late"),
        ("id", "text_body", "n", "extra"),
    ]


def test_a_renamed_column_is_filled_under_its_new_name(make: Any) -> None:
    decoding = make()
    decoding.run("CREATE TABLE t (id int PRIMARY KEY, body text, gone text);\nINSERT INTO t VALUES (1, 'x', 'y')")
    (row,) = decoding.rows()
    decoding.run("ALTER TABLE t RENAME body TO text_body;\nALTER TABLE t DROP gone;\nALTER TABLE t ADD other text")
    expressions = decoding.catalogs["pgoutput"].text_columns(row.table)
    query = sql.SQL("SELECT {} FROM t").format(sql.SQL(", ").join(expressions))
    assert decoding.connection.execute(query).fetchone() == ("1", "x", None)


def test_a_partition_attached_or_detached_between_rows(make: Any) -> None:
    decoding = make(postgres={"tables": ["public.p"]})
    decoding.run(
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);\n"
        "CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (10);\nCREATE TABLE p_2 (id int PRIMARY KEY);\n"
        "INSERT INTO p VALUES (1);\nINSERT INTO p_2 VALUES (11)"
    )
    assert [row.new for row in decoding.rows()] == [[b"1"]]
    decoding.run("ALTER TABLE p ATTACH PARTITION p_2 FOR VALUES FROM (10) TO (20);\nINSERT INTO p_2 VALUES (12)")
    assert [row.new for row in decoding.rows()] == [[b"12"]]
    decoding.run("ALTER TABLE p DETACH PARTITION p_2;\nINSERT INTO p_2 VALUES (13)")
    assert decoding.rows() == []


def test_a_table_dropped_with_rows_waiting_is_passed_over(make: Any) -> None:
    decoding = make()
    decoding.run("CREATE TABLE t (id int PRIMARY KEY);\nINSERT INTO t VALUES (1);\nDROP TABLE t")
    decoding.run("CREATE TABLE t (other int PRIMARY KEY, x text);\nINSERT INTO t VALUES (2, 'x')")
    rows = [event for event in decoding.events("pgoutput") if isinstance(event, Row)]
    assert [row.new for row in rows] == [[b"2", b'"x"']]


def test_a_table_made_after_its_name_was_not_found(make: Any) -> None:
    decoding = make()
    decoding.run("CREATE TABLE t (id int PRIMARY KEY);\nINSERT INTO t VALUES (1);\nDROP TABLE t")
    assert decoding.rows() == []
    decoding.run("CREATE TABLE t (id int PRIMARY KEY, x text);\nINSERT INTO t VALUES (2, 'x')")
    assert [row.new for row in decoding.rows()] == [[b"2", b'"x"']]


def test_a_check_that_keeps_nan_out_makes_null_certain(make: Any) -> None:
    decoding = make()
    decoding.run(
        'CREATE TABLE t (id int PRIMARY KEY, "a % b" real CHECK ("a % b" BETWEEN 0 AND 1), b real CHECK (b > 0), '
        "c numeric(5,2) CHECK (c < 10 AND c > -10), d float8, e float8 CHECK (sqrt(e) > 0));\nINSERT INTO t VALUES (1)"
    )
    (row,) = (event for event in decoding.events("wal2json") if isinstance(event, Row))
    assert row.new == [b"1", NULL, UNKNOWN, NULL, UNKNOWN, UNKNOWN]
    (row,) = (event for event in decoding.events("pgoutput") if isinstance(event, Row))
    assert [column.nonfinite for column in row.table.columns] == [False, False, True, False, True, True]


def test_the_catalog_serves_two_threads(make: Any) -> None:
    decoding = make()
    decoding.run("CREATE TABLE t (id int PRIMARY KEY, b boolean)")
    catalog = decoding.catalogs["pgoutput"]
    table = catalog.table("public", "t")
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda n: (catalog.text_columns(table), catalog.advance(1 << 62 | n)), range(40)))
    assert len({repr(expressions) for expressions, _ in results}) == 1


def test_generated_columns_stay(make: Any) -> None:
    decoding = make()
    decoding.run(
        "CREATE TABLE t (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED, x text);\n"
        "INSERT INTO t (id, x) VALUES (1, 'x')"
    )
    (row,) = decoding.rows()
    assert row.new == [b"1", b'"x"']


def test_columns_are_selected_and_masked(make: Any) -> None:
    settings = {
        "columns": ["*"],
        "exclude": ["secret*"],
        "mask": {"email": "hash", "phone": "redact", "ssn": "drop", "flag": "hash", "raw": "hash", "n": "hash"},
        "version_column": "versions",
    }
    decoding = make(tables={"public.t": settings}, mask_secret="key")
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


def test_vectors(make: Any) -> None:
    tables = {"public.a": {"vector": "v"}, "public.b": {"vector": "v"}, "public.c": {"vector": "v"}}
    decoding = make(tables=tables)
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


def test_a_table_without_a_key(make: Any) -> None:
    decoding = make()
    decoding.run("CREATE TABLE t (a int, b text);\nINSERT INTO t VALUES (1, 'x')")
    for plugin in decoding.slots:
        with pytest.raises(PreconditionError, match="no primary key") as caught:
            decoding.events(plugin)
        assert 'ALTER TABLE "public"."t" ADD PRIMARY KEY' in caught.value.hint


def test_a_table_without_a_key_when_allowed(make: Any) -> None:
    decoding = make(postgres={"missing_identity": "allow"})
    decoding.run(
        "CREATE TABLE t (a int, b text);\nALTER TABLE t REPLICA IDENTITY FULL;\nINSERT INTO t VALUES (1, 'x');\n"
        "UPDATE t SET a = 2;\nDELETE FROM t"
    )
    created, updated, deleted = decoding.rows()
    assert created.table.key == (0, 1)
    assert (updated.new, updated.old) == ([b"2", b'"x"'], [b"1", b'"x"'])
    assert deleted.old == [b"2", b'"x"']


def test_identity_by_index_is_the_key(make: Any) -> None:
    decoding = make()
    decoding.run(
        "CREATE TABLE t (id int PRIMARY KEY, b text NOT NULL, a int NOT NULL, x int);\n"
        "CREATE UNIQUE INDEX other ON t (a, b) INCLUDE (x);\nALTER TABLE t REPLICA IDENTITY USING INDEX other;\n"
        "INSERT INTO t VALUES (1, 'x', 5, 0);\nUPDATE t SET id = 2;\nUPDATE t SET a = 6;\nDELETE FROM t"
    )
    created, kept, moved, deleted = decoding.rows()
    assert created.table.key == (2, 1)
    assert kept.old is None
    assert moved.old == [UNCHANGED, b'"x"', b"5", UNCHANGED]
    assert deleted.old == [UNCHANGED, b'"x"', b"6", UNCHANGED]


def test_a_key_column_cannot_be_left_out(make: Any) -> None:
    decoding = make(tables={"public.t": {"exclude": ["id"]}})
    decoding.run("CREATE TABLE t (id int PRIMARY KEY, x int);\nINSERT INTO t VALUES (1, 1)")
    for plugin in decoding.slots:
        with pytest.raises(ConfigError, match="key column id"):
            decoding.events(plugin)


def test_selected_tables(make: Any) -> None:
    decoding = make(postgres={"tables": ["*.*"]})
    decoding.run(
        "CREATE SCHEMA IF NOT EXISTS cdc;\nCREATE TABLE IF NOT EXISTS cdc.state (id int PRIMARY KEY);\n"
        "CREATE TABLE a (id int PRIMARY KEY);\nALTER TABLE a REPLICA IDENTITY FULL;\nCREATE TABLE nokey (x int);\n"
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);\n"
        "CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (10);\nALTER TABLE p_1 REPLICA IDENTITY NOTHING;\n"
        "CREATE TEMPORARY TABLE temporary (id int PRIMARY KEY);\nCREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY)"
    )
    a, nokey, p = decoding.catalogs["pgoutput"].selected_tables()
    assert (a.schema, a.name, a.key, a.has_pk, a.full, a.unusable) == ("public", "a", ("id",), True, True, ())
    assert (nokey.has_pk, nokey.unusable) == (False, ("public.nokey",))
    assert "ADD PRIMARY KEY" in nokey.remedy
    assert (p.name, p.is_partitioned, [leaf[1:] for leaf in p.leaves]) == ("p", True, [("public", "p_1")])
    assert p.unusable == ("public.p_1",)
    assert p.remedy == 'ALTER TABLE "public"."p_1" REPLICA IDENTITY FULL;'


def test_wal2json_filters_only_plain_tables(make: Any) -> None:
    decoding = make(postgres={"tables": ["public.a", 'public.odd, "n*ame']})
    plain = make(postgres={"tables": ["public.a", "public.b c"]})
    decoding.run(
        'CREATE TABLE a (id int PRIMARY KEY);\nCREATE TABLE "b c" (id int PRIMARY KEY);\nCREATE TABLE d (id int)'
    )
    assert "add-tables" not in decoding.decoders["wal2json"].options()
    assert plain.decoders["wal2json"].options()["add-tables"] == "public.a,public.b\\ c"
    plain.both()
    plain.run('INSERT INTO "b c" VALUES (1);\nINSERT INTO d VALUES (1)')
    assert [row.table.name for row in plain.rows()] == ["b c"]
    plain.run("DROP TABLE a;\nCREATE TABLE a (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    with pytest.raises(PreconditionError, match="partitioned or dropped"):
        plain.decoders["wal2json"].decode(plain.frames("wal2json")[-2])


def test_the_catalog_comes_back_after_its_connection_broke(make: Any, clean: str) -> None:
    decoding = make()
    decoding.run("CREATE TABLE t (id int PRIMARY KEY)")
    catalog = decoding.catalogs["pgoutput"]
    assert catalog.table("public", "t").name == "t"
    decoding.run(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
        "WHERE application_name = 'memory-cdc catalog' AND datname = current_database()"
    )
    assert [table.name for table in catalog.selected_tables()] == ["t"]
    with pytest.raises(PreconditionError, match=r"no table public\.absent"):
        catalog.table("public", "absent")
    config = parse({"postgres": {"dsn": "host=127.0.0.1 port=1"}, "kafka": {"bootstrap": "none"}})
    with pytest.raises(ConnectError):
        Catalog(None, config).table("public", "t")
