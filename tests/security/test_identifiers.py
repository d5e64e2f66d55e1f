"""Names that are no words: quotes, placeholders and statements as names of tables and columns, the whole way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from psycopg import sql

from cdc.config import Config
from cdc.embedded import Endpoints
from cdc.errors import TopicError
from cdc.source.catalog import Catalog
from tests.comparison import by_id, rows_of, table_dump, topic_rows
from tests.pipeline import config_of, pipeline, reading

TABLE = "Select-Table"
SCHEMA = 'odd "schema"; DROP TABLE victims; --'
COLUMNS = {
    "id": "integer", '"; DROP TABLE victims; --': "text", "%s": "text", "%(id)s": "numeric", "{}": "text",
    "it's": "text", "$1": "double precision", "back\\slash": "text", "select": "text", "é": "text", "a.b": "text",
}  # fmt: skip
ROOT = Path(__file__).parents[2]


def quoted(*names: str) -> sql.Composable:
    """As an identifier."""
    return sql.Identifier(*names)


@pytest.fixture
def source(database: str) -> Iterator[psycopg.Connection]:
    """With a table that must be there afterwards."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE victims (id integer PRIMARY KEY)")
        yield connection
        assert connection.execute("SELECT count(*) FROM victims").fetchone() == (0,)
        connection.execute("DROP TABLE victims")


def make_table(connection: psycopg.Connection, name: str) -> None:
    """Keys of two columns, one of them named like a placeholder; texts stand apart, so that updates leave holes."""
    columns = sql.SQL(", ").join(
        sql.SQL("{} {}").format(quoted(column), sql.SQL(kind)) for column, kind in COLUMNS.items()
    )
    key = sql.SQL(", ").join(map(quoted, ("id", "%s")))
    wide = sql.SQL(", ").join(
        sql.SQL("ALTER {} SET STORAGE EXTERNAL").format(quoted(column))
        for column in ("{}", "%(id)s", '"; DROP TABLE victims; --')
    )
    table = quoted("public", name)
    connection.execute(sql.SQL("CREATE TABLE {} ({}, PRIMARY KEY ({}))").format(table, columns, key))
    connection.execute(sql.SQL("ALTER TABLE {} {}").format(table, wide))


def insert(connection: psycopg.Connection, name: str, numbers: range) -> None:
    """One wide row a number."""
    values = sql.SQL(", ").join(sql.Placeholder() for _ in COLUMNS)
    query = sql.SQL("INSERT INTO {} VALUES ({})").format(quoted("public", name), values)
    with connection.cursor() as cursor:
        cursor.executemany(query, [_row(number) for number in numbers])


def _row(number: int) -> list[Any]:
    texts = {"text": f"'; DROP TABLE victims; -- %s {number} " + "x" * 3000, "double precision": 0.5, "numeric": 7}
    return [number, *(f"key {number}" if column == "%s" else texts[kind] for column, kind in list(COLUMNS.items())[1:])]


@pytest.fixture
def config(servers: Endpoints, database: str, tmp_path: Path, plugin: str) -> Config:
    """Everything of the table travels; the index takes one of its texts."""
    return config_of(
        servers, database, tmp_path, postgres={"plugin": plugin, "tables": [f"public.{TABLE}"]},
        faiss={"table": f"public.{TABLE}", "metric": "cosine"}, embedder={"kind": "hash", "dimension": 16},
        tables={f"public.{TABLE}": {"text": "%s"}},
    )  # fmt: skip


@pytest.mark.parametrize("plugin", ["wal2json", "pgoutput"])
async def test_odd_names_travel(config: Config, source: psycopg.Connection) -> None:
    make_table(source, TABLE)
    try:
        insert(source, TABLE, range(10))  # for the snapshot
        async with pipeline(config) as running:
            await running.caught_up()
            insert(source, TABLE, range(10, 20))
            query = sql.SQL("UPDATE {} SET {} = 'changed', {} = NULL WHERE id % 2 = 0")
            source.execute(query.format(quoted("public", TABLE), quoted("select"), quoted("$1")))
            source.execute(sql.SQL("DELETE FROM {} WHERE id % 5 = 0").format(quoted("public", TABLE)))
            await running.caught_up()
            expected = by_id(rows_of(config, TABLE, COLUMNS))
            assert len(expected) == 16
            assert by_id(topic_rows(await table_dump(config, TABLE), COLUMNS)) == expected
            assert _redis_rows(config) == expected
    finally:
        source.execute(sql.SQL("DROP TABLE {}").format(quoted("public", TABLE)))


def _redis_rows(config: Config) -> dict[str | None, dict[str, str | None]]:
    with redis.Redis.from_url(config.redis.url, decode_responses=True) as client:
        held = [client.hgetall(key) for key in client.scan_iter(f"{TABLE}:*", count=1000)]
    return by_id([{column: fields.get(column) for column in COLUMNS} for fields in held])


@pytest.mark.parametrize("plugin", ["wal2json"])
async def test_a_name_no_topic_can_have_is_refused(config: Config, source: psycopg.Connection) -> None:
    source.execute(sql.SQL("CREATE SCHEMA {}").format(quoted(SCHEMA)))
    try:
        source.execute(sql.SQL("CREATE TABLE {} (id integer PRIMARY KEY)").format(quoted(SCHEMA, "t")))
        odd = config.model_copy(update={"postgres": config.postgres.model_copy(update={"tables": (f"{SCHEMA}.t",)})})
        with pytest.raises(TopicError, match="Kafka takes letters"):
            async with reading(odd) as running:
                await running.task
    finally:
        source.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(quoted(SCHEMA)))


@pytest.mark.parametrize("plugin", ["wal2json"])
def test_a_check_with_code_of_a_user_is_not_evaluated(config: Config, source: psycopg.Connection) -> None:
    """Our role has rights that the table's owner lacks."""
    source.execute("CREATE SEQUENCE ran")
    source.execute("SELECT nextval('ran')")
    source.execute(
        "CREATE FUNCTION below(real, real) RETURNS boolean IMMUTABLE LANGUAGE plpgsql"
        " AS $$ BEGIN PERFORM nextval('ran'); RETURN true; END $$"
    )
    source.execute("CREATE OPERATOR <<< (FUNCTION = below, LEFTARG = real, RIGHTARG = real)")
    source.execute("CREATE TABLE checked (id integer PRIMARY KEY, score real CHECK (score <<< 1::real))")
    try:
        catalog = Catalog(None, config)
        catalog.table("public", "checked")
        catalog.close()
        assert source.execute("SELECT last_value FROM ran").fetchone() == (1,)
    finally:
        source.execute("DROP TABLE checked; DROP OPERATOR <<< (real, real); DROP FUNCTION below; DROP SEQUENCE ran")


# What runs or makes SQL. Its text has to be a literal, composed by psycopg.sql, or filled from constants of the module.
SINKS = {"execute", "executemany", "SQL", "exec_", "send_query", "_run", "_one", "_piece", "_fetch", "_value", "run"}
# Text that the server itself has quoted: format_type() and pg_get_expr().
QUOTED_BY_THE_SERVER = {
    ("cdc/source/fill.py", "_raw"), ("cdc/source/spans.py", "_key"), ("cdc/source/table_rows.py", "_canonical"),
    ("cdc/source/table_rows.py", "_join"), ("cdc/source/relations.py", "_refuses"),
}  # fmt: skip
# The condition of a backfill is SQL by design: from who may write cdc.conditions or holds the admin key, prepared alone
# as one expression, and run in a transaction that only reads. `_since` makes one, with a name of a type from a list.
A_PERSONS_CONDITION = {
    ("cdc/commands/asking_for_rows.py", "_since"), ("cdc/source/condition.py", "estimate"),
    ("cdc/source/spans.py", "bracketed"),
}  # fmt: skip


def test_no_statement_is_put_together_from_text() -> None:
    found = {
        (str(path.relative_to(ROOT)), function)
        for folder in ("cdc", "consumers")
        for path in (ROOT / folder).rglob("*.py")
        for function in unsafe(ast.parse(path.read_text()))
    }
    assert found == QUOTED_BY_THE_SERVER | A_PERSONS_CONDITION


@pytest.mark.parametrize(
    ("code", "safe"),
    [
        ("c.execute('SELECT 1')", True),
        ("c.execute(f'FETCH {ROWS} FROM x')", True),
        ("c.execute(sql.SQL('SELECT {}').format(sql.Identifier(name)))", True),
        ("c.execute(f'SELECT {name}')", False),
        ("c.execute(f'SELECT {name}'.encode())", False),
        ("c.execute('SELECT %s' % name)", False),
        ("c.execute('SELECT ' + name)", False),
        ("c.execute('SELECT {}'.format(name))", False),
        ("c.execute(sql.SQL(name))", False),
        ("c.execute(sql.SQL(f'{name}'))", False),
    ],
)
def test_the_scan_sees(code: str, safe: bool) -> None:
    assert (list(unsafe(ast.parse(f"def f():\n    {code}"))) == []) is safe


def unsafe(module: ast.Module) -> Iterator[str]:
    """Names of the functions in which text becomes SQL."""
    for function in ast.walk(module):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            calls = [node for node in ast.walk(function) if isinstance(node, ast.Call) and _name(node.func) in SINKS]
            if any(_filled(node) for call in calls for argument in call.args[:1] for node in _text(argument)) or any(
                _dynamic(call) for call in calls
            ):
                yield function.name


def _name(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


def _text(argument: ast.expr) -> Iterator[ast.AST]:
    """The parts of the text itself: not what is passed to psycopg.sql's own format()."""
    yield argument
    if isinstance(argument, ast.Call) and isinstance(argument.func, ast.Attribute) and not _composed(argument):
        yield from _text(argument.func.value)


def _composed(call: ast.Call) -> bool:
    """`sql.SQL(…).format(…)` and `.join(…)`, which psycopg quotes."""
    inner = call.func.value if isinstance(call.func, ast.Attribute) else None
    return isinstance(inner, ast.Call) and _name(inner.func) == "SQL"


def _filled(node: ast.AST) -> bool:
    """An f-string, %, + or format() with anything but a constant in it."""
    if isinstance(node, ast.JoinedStr):
        return not all(_constant(part.value) for part in node.values if isinstance(part, ast.FormattedValue))
    if isinstance(node, ast.BinOp):
        return not all(_constant(side) for side in (node.left, node.right))
    return isinstance(node, ast.Call) and _name(node.func) == "format" and not _composed(node)


def _dynamic(call: ast.Call) -> bool:
    return _name(call.func) == "SQL" and not all(map(_constant, call.args)) and not any(map(_filled, call.args))


def _constant(node: ast.expr) -> bool:
    """A literal, or a constant of the module by its name."""
    return isinstance(node, ast.Constant) or (isinstance(node, ast.Name) and node.id.isupper())
