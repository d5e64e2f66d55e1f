"""Keys of every type that can be one: from the topic's key to PostgreSQL's text and back, with a row and without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from psycopg import sql

from cdc.config import Config, parse
from cdc.errors import PreconditionError
from cdc.source.backfill import REQUEST_KEYS, pieces
from cdc.source.catalog import Catalog
from cdc.source.connection import PINNED
from cdc.source.key_text import key_texts, parse_key, topic_keys
from cdc.source.snapshot import ChunkReader
from cdc.source.spans import Selection, Span
from tests.type_samples import SAMPLES, SETUP

LEAST = 50  # of the samples' types, or the test proves little


@pytest.fixture
def tables(clean_database: str) -> Iterator[tuple[Config, psycopg.Connection, dict[str, str]]]:
    """A table for each type that can be a key, with its samples; and its type by name."""
    with psycopg.connect(clean_database, autocommit=True, options=PINNED) as connection:
        connection.execute(SETUP.encode())
        kinds = {}
        for number, (kind, samples) in enumerate(SAMPLES.items()):
            name = f"t{number}"
            try:
                connection.execute(f"CREATE TABLE {name} (k {kind} PRIMARY KEY, v int)".encode())
                connection.execute(f"SELECT FROM {name} ORDER BY k".encode())
            except (psycopg.errors.UndefinedObject, psycopg.errors.UndefinedFunction):  # no order, so no key
                connection.execute(f"DROP TABLE IF EXISTS {name}".encode())
                continue
            kinds[name] = kind
            for text in samples:
                insert = sql.SQL("INSERT INTO {} VALUES (%s::text::{}, 1)").format(sql.Identifier(name), sql.SQL(kind))
                connection.execute(insert, [text])
        made = {"postgres": {"dsn": clean_database, "tables": ["public.*"]}, "kafka": {"bootstrap": "none"}}
        yield parse(made), connection, kinds


def test_every_type(tables: tuple[Config, psycopg.Connection, dict[str, str]]) -> None:
    config, connection, kinds = tables
    assert len(kinds) >= LEAST
    catalog = Catalog(connection, config)
    for name, kind in kinds.items():
        table = catalog.table("public", name)
        columns = catalog.copy_columns(table)

        def read(selection: Selection) -> tuple[list[bytes], list[bytes]]:
            """Keys of rows, and of those that have none."""
            with closing(ChunkReader(config, table, columns, selection, 100)) as reader:  # noqa: B023 -- called here
                chunk = reader.read(Span(None, None, 0), ("public", name))  # noqa: B023
            gone = [table.key_template % tuple(old[i] for i in table.key) for old in chunk.gone]  # noqa: B023
            return sorted(key for key, _body, _version in chunk.rows), sorted(gone)

        keys, none = read(Selection())
        assert len(keys) == len(SAMPLES[kind]), kind
        assert none == []
        texts = [key_texts(key, table, catalog.type_of) for key in keys]
        assert topic_keys(connection, table, texts) == keys, kind
        assert [parse_key(key.decode(), table, catalog.type_of) for key in keys] == texts, kind
        assert read(Selection(texts)) == (keys, []), kind
        connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(name)))
        assert read(Selection(texts)) == ([], keys), kind


def test_equal_but_written_in_another_way_is_another_key(clean_database: str) -> None:
    """1.5 and 1.50 are one row, and two records in a store."""
    config = parse({"postgres": {"dsn": clean_database}, "kafka": {"bootstrap": "none"}})
    with psycopg.connect(clean_database, autocommit=True, options=PINNED) as connection:
        connection.execute(
            "CREATE TABLE two (a numeric, b text, PRIMARY KEY (a, b)); INSERT INTO two VALUES (1.50, 'x')"
        )
        catalog = Catalog(connection, config)
        table = catalog.table("public", "two")
        selection = Selection([["1.5", "x"], ["1.50", "x"], ["1.50", "y'\\"]])
        with closing(ChunkReader(config, table, catalog.copy_columns(table), selection, 10)) as reader:
            chunk = reader.read(Span(None, None, 0), ("public", "two"))
        assert [key for key, _body, _version in chunk.rows] == [b'{"a":"1.50","b":"x"}']
        gone = [table.key_template % tuple(old[i] for i in table.key) for old in chunk.gone]
        assert gone == [b'{"a":"1.5","b":"x"}', b'{"a":"1.50","b":"y\'\\\\"}']
        for wrong in ("1.5", '{"a":"1"}', '{"a":"1","b":null}', '{"a":["1"],"b":"x"}', "{", '{"a":{},"b":"x"}'):
            with pytest.raises(PreconditionError):
                parse_key(wrong, table, catalog.type_of)
        for texts in ([["1"]], [["no number", "x"]], [["1", "\ud800"]]):
            with pytest.raises(PreconditionError):
                topic_keys(connection, table, texts)


def test_many_keys_travel_in_several_requests() -> None:
    keys = [[str(n), "ü" * (n % 300)] for n in range(2 * REQUEST_KEYS + 10)]
    cut = list(pieces(keys))
    assert [key for piece in cut for key in piece] == keys
    assert len(cut) > 3
    assert max(map(len, cut)) <= REQUEST_KEYS
    assert list(pieces([])) == []
