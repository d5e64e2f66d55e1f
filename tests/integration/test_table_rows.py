"""Rows as verify reads them: the bytes of the topics, vectors from their binary form too."""

from __future__ import annotations

import json

import psycopg
import pytest

from cdc.config import parse
from cdc.source import table_rows
from cdc.source.table_rows import TableRows

TABLE = ("public", "measured")
VECTORS = (
    "'{1,2.5,-0}'",
    "'{1e-40,3.4e38}'",
    "'{NaN,1,-Infinity}'",
    "'{}'",
    "'[3:4]={1,2}'",
    "NULL",
    *4 * ("'{1,2}'",),
)
NO_VECTORS = ("'{1,NULL,3}'", "'{{1,2},{3,4}}'", "'{{1,2},{NULL,4}}'", "'{{{1.5}}}'")


async def rows_of(dsn: str, values: tuple[str, ...], kind: str, columns: set[str] | None) -> dict[bytes, bytes]:
    """Key → row of a table with these vectors, by `rows` and by `look`."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS measured")
        connection.execute(f"CREATE TABLE measured (id int PRIMARY KEY, note text, ok bool, e {kind})".encode())
        for number, value in enumerate(values):
            connection.execute(f"INSERT INTO measured VALUES ({number}, 'Größe', true, {value})".encode())
    tables = {"public.measured": {"vector": "e"}}
    config = parse({"postgres": {"dsn": dsn}, "kafka": {"bootstrap": "unused"}, "tables": tables})
    reading = TableRows(config, *TABLE, 1, columns=columns)
    try:
        found = {key: row async for rows in reading.rows() for key, row in rows}
        looked = await reading.look(list(found))
    finally:
        reading.close()
    assert looked == list(found.values())
    assert len(found) == len(values)
    return found


ALL = {"note", "ok", "e"}


@pytest.fixture(autouse=True)
def many_round_trips(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row each: from the sixth on psycopg prepares the statement."""
    monkeypatch.setattr(table_rows, "FIRST_ROWS", 1)
    monkeypatch.setattr(table_rows, "FETCH_ROWS", 1)


async def test_binary_vectors_give_the_same_bytes(database: str) -> None:
    text = await rows_of(database, VECTORS, "real[]", None)
    assert await rows_of(database, VECTORS, "real[]", ALL) == text
    assert {key: list(json.loads(row)) for key, row in text.items()} == {key: ["id", "note", "ok", "e"] for key in text}


async def test_what_is_no_vector_gives_the_same_values(database: str) -> None:
    text = await rows_of(database, NO_VECTORS, "real[]", None)
    binary = await rows_of(database, NO_VECTORS, "real[]", ALL)
    assert {key: json.loads(row) for key, row in binary.items()} == {key: json.loads(row) for key, row in text.items()}


async def test_other_types_are_read_as_text(database: str) -> None:
    for kind, values in (("float8[]", ("'{1,2.5}'",)), ("int[]", ("'{1,2}'",)), ("numeric[]", ("'{1,2.50}'",))):
        text = await rows_of(database, values, kind, None)
        assert await rows_of(database, values, kind, ALL) == text


async def test_some_columns_only(database: str) -> None:
    assert await rows_of(database, ("'{1}'",), "real[]", {"note"}) == {b'{"id":0}': '{"id":0,"note":"Größe"}'.encode()}


@pytest.mark.parametrize("kind", ["vector(3)", "halfvec(3)"])
async def test_pgvector(database18: str, kind: str) -> None:
    with psycopg.connect(database18, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    text = await rows_of(database18, ("'[1,2.5,-3]'", "NULL"), kind, None)
    assert await rows_of(database18, ("'[1,2.5,-3]'", "NULL"), kind, ALL) == text
