"""What the catalog makes of tables: keys, replica identities, selection, connection."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from psycopg import sql

from cdc.config import parse
from cdc.errors import ConfigError, ConnectError, PreconditionError
from cdc.source.catalog import Catalog
from cdc.source.events import UNCHANGED


def test_a_renamed_column_is_filled_under_its_new_name(make_decoding: Any) -> None:
    decoding = make_decoding()
    decoding.run("CREATE TABLE t (id int PRIMARY KEY, body text, gone text);\nINSERT INTO t VALUES (1, 'x', 'y')")
    (row,) = decoding.rows()
    decoding.run("ALTER TABLE t RENAME body TO text_body;\nALTER TABLE t DROP gone;\nALTER TABLE t ADD other text")
    expressions = decoding.catalogs["pgoutput"].text_columns(row.table)
    query = sql.SQL("SELECT {} FROM t").format(sql.SQL(", ").join(expressions))
    assert decoding.connection.execute(query).fetchone() == ("1", "x", None)


def test_the_catalog_serves_two_threads(make_decoding: Any) -> None:
    decoding = make_decoding()
    decoding.run("CREATE TABLE t (id int PRIMARY KEY, b boolean)")
    catalog = decoding.catalogs["pgoutput"]
    table = catalog.table("public", "t")
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda n: (catalog.text_columns(table), catalog.advance(1 << 62 | n)), range(40)))
    assert len({repr(expressions) for expressions, _ in results}) == 1


def test_a_table_without_a_key(make_decoding: Any) -> None:
    decoding = make_decoding()
    decoding.run("CREATE TABLE t (a int, b text);\nINSERT INTO t VALUES (1, 'x')")
    for plugin in decoding.slots:
        with pytest.raises(PreconditionError, match="no primary key") as caught:
            decoding.events(plugin)
        assert 'ALTER TABLE "public"."t" ADD PRIMARY KEY' in caught.value.hint


def test_a_table_without_a_key_when_allowed(make_decoding: Any) -> None:
    decoding = make_decoding(postgres={"missing_identity": "allow"})
    decoding.run(
        "CREATE TABLE t (a int, b text);\nALTER TABLE t REPLICA IDENTITY FULL;\nINSERT INTO t VALUES (1, 'x');\n"
        "UPDATE t SET a = 2;\nDELETE FROM t"
    )
    created, updated, deleted = decoding.rows()
    assert created.table.key == (0, 1)
    assert (updated.new, updated.old) == ([b"2", b'"x"'], [b"1", b'"x"'])
    assert deleted.old == [b"2", b'"x"']


def test_identity_by_index_is_the_key(make_decoding: Any) -> None:
    decoding = make_decoding()
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


def test_a_key_column_cannot_be_left_out(make_decoding: Any) -> None:
    decoding = make_decoding(tables={"public.t": {"exclude": ["id"]}})
    decoding.run("CREATE TABLE t (id int PRIMARY KEY, x int);\nINSERT INTO t VALUES (1, 1)")
    for plugin in decoding.slots:
        with pytest.raises(ConfigError, match="key column id"):
            decoding.events(plugin)


def test_selected_tables(make_decoding: Any) -> None:
    decoding = make_decoding(postgres={"tables": ["*.*"]})
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


def test_wal2json_filters_only_plain_tables(make_decoding: Any) -> None:
    decoding = make_decoding(postgres={"tables": ["public.a", 'public.odd, "n*ame']})
    plain = make_decoding(postgres={"tables": ["public.a", "public.b c"]})
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


def test_the_catalog_comes_back_after_its_connection_broke(make_decoding: Any, clean_database: str) -> None:
    decoding = make_decoding()
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
