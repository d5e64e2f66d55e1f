"""Both decoders while tables change: partitions, TRUNCATE, columns and keys altered between rows and before them."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import sql

from cdc.errors import PreconditionError
from cdc.source.events import Begin, Commit, Row, Truncate
from tests.decoding import Decoding


@pytest.mark.parametrize("via_root", [False, True], ids=["leaves published", "via root"])
def test_partitions_travel_as_their_root(make_decoding: Any, via_root: bool) -> None:
    decoding = make_decoding(via_root=via_root)
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


def test_truncate_of_one_partition_stops(make_decoding: Any) -> None:
    decoding = make_decoding()
    decoding.run(PARTITIONED)
    decoding.both()
    decoding.run("TRUNCATE p_1")
    for plugin in decoding.slots:
        with pytest.raises(PreconditionError, match=r"public\.p_1 was truncated without public\.p") as caught:
            decoding.events(plugin)
        assert "DELETE" in caught.value.hint


@pytest.mark.parametrize("statement", ["TRUNCATE p", "TRUNCATE p_1, p", "TRUNCATE p_1, p_2", "TRUNCATE p_2, p_1, p"])
@pytest.mark.parametrize("via_root", [False, True], ids=["leaves published", "via root"])
def test_truncate_of_a_root(make_decoding: Any, statement: str, via_root: bool) -> None:
    decoding = make_decoding(via_root=via_root)
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


def test_truncate_of_several_tables(make_decoding: Any) -> None:
    decoding = make_decoding(postgres={"tables": ["public.a", "public.p", "public.b*"]})
    decoding.run(
        "CREATE TABLE a (id int PRIMARY KEY);\nCREATE TABLE b (id int PRIMARY KEY);\nCREATE TABLE other (id int);\n"
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);\n"
        "CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (10);\nTRUNCATE a, other, p, b;\nTRUNCATE other"
    )
    truncated = [event.tables[0].name for event in decoding.both() if isinstance(event, Truncate)]
    assert truncated == ["a", "p", "b"]


LONG = "repeat('long ', 2000)"  # over the TOAST threshold of 2 kB, even when compressed: storage is external


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
def test_ddl_in_the_stream(make_decoding: Any, identity: str) -> None:
    """Each change is read before the next, as a reader that keeps up does."""
    decoding = make_decoding()
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


def test_ddl_while_rows_wait_under_full(make_decoding: Any) -> None:
    """The catalog is far ahead of the rows: under REPLICA IDENTITY FULL every row still shows what it had."""
    decoding = make_decoding()
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


def test_the_part_an_update_shows_may_become_the_whole_row(make_decoding: Any) -> None:
    """Without its unchanged TOAST column an update shows what every row shows after that column was dropped."""
    decoding = make_decoding()
    decoding.run("CREATE TABLE t (id int PRIMARY KEY, n int, body text);\nALTER TABLE t REPLICA IDENTITY FULL")
    decoding.run("ALTER TABLE t ALTER body SET STORAGE EXTERNAL;\nINSERT INTO t VALUES (1, 1, repeat('long ', 2000))")
    decoding.run("UPDATE t SET n = 2;\nALTER TABLE t DROP body;\nUPDATE t SET n = 3;\nINSERT INTO t VALUES (2, 2)")
    assert [len(row.new or ()) for row in decoding.rows()] == [3, 3, 2, 2]


def test_a_partition_attached_or_detached_between_rows(make_decoding: Any) -> None:
    decoding = make_decoding(postgres={"tables": ["public.p"]})
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


def test_a_table_dropped_with_rows_waiting_is_passed_over(make_decoding: Any) -> None:
    decoding = make_decoding()
    decoding.run("CREATE TABLE t (id int PRIMARY KEY);\nINSERT INTO t VALUES (1);\nDROP TABLE t")
    decoding.run("CREATE TABLE t (other int PRIMARY KEY, x text);\nINSERT INTO t VALUES (2, 'x')")
    rows = [event for event in decoding.events("pgoutput") if isinstance(event, Row)]
    assert [row.new for row in rows] == [[b"2", b'"x"']]


def test_a_table_made_after_its_name_was_not_found(make_decoding: Any) -> None:
    decoding = make_decoding()
    decoding.run("CREATE TABLE t (id int PRIMARY KEY);\nINSERT INTO t VALUES (1);\nDROP TABLE t")
    assert decoding.rows() == []
    decoding.run("CREATE TABLE t (id int PRIMARY KEY, x text);\nINSERT INTO t VALUES (2, 'x')")
    assert [row.new for row in decoding.rows()] == [[b"2", b'"x"']]
