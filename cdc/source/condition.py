"""Conditions of backfills, written by people: kept in `cdc.conditions`, checked before they run.

A condition is one boolean expression over the table's columns. It runs with the rights of whoever reads by it, in a
transaction that may only read. That it is one expression and nothing besides is proven by two forms of brackets: what
closes one of them breaks the other; and the extended protocol takes one statement only.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import psycopg
from psycopg import Connection, pq, sql
from psycopg.errors import error_from_result
from psycopg.generators import execute

from cdc.errors import CdcError, PreconditionError
from cdc.source.connection import connect_error, said
from cdc.source.spans import bracketed

_HINT = "write it as after WHERE in SQL, over columns of this table, and try it in psql"
_FORGET = sql.SQL("DELETE FROM cdc.conditions WHERE asked_at < clock_timestamp() - interval '30 days'")
_KEEP = sql.SQL("INSERT INTO cdc.conditions (id, table_name, condition) VALUES (%s, %s, %s)")
_FIND = sql.SQL("SELECT condition FROM cdc.conditions WHERE id = %s AND table_name = %s")


class Refused(PreconditionError):
    """PostgreSQL does not take a condition or a key: nothing is wrong with the server."""


def estimate(connection: Connection[Any], source: sql.Composable, condition: str) -> int:
    """About how many rows meet it, as the planner sees it. Raises Refused for what is no condition, ConnectError."""
    try:
        _prepared(connection, sql.SQL("SELECT ARRAY[\n{}\n] FROM {}").format(sql.SQL(condition), source))
        plan = sql.SQL("EXPLAIN (FORMAT JSON) SELECT 1 FROM {} WHERE {}").format(source, bracketed(condition))
        _prepared(connection, sql.SQL("SELECT 1 FROM {} WHERE {}").format(source, bracketed(condition)))
        return _rows(connection, plan)
    except psycopg.Error as error:
        raise explained(connection, error, "the condition") from error


def _rows(connection: Connection[Any], plan: sql.Composed) -> int:
    connection.execute("BEGIN READ ONLY")
    try:
        row = connection.execute(plan).fetchone()
    finally:
        if not connection.broken:
            connection.execute("ROLLBACK")
    told = row[0] if row else "[]"
    plans = json.loads(told) if isinstance(told, str) else told
    return int(plans[0]["Plan"]["Plan Rows"])


def _prepared(connection: Connection[Any], statement: sql.Composed) -> None:
    """Parsed and planned by no one: the extended protocol refuses a second statement."""
    connection.pgconn.send_prepare(b"", statement.as_bytes(connection))
    for result in connection.wait(execute(connection.pgconn)):
        if result.status != pq.ExecStatus.COMMAND_OK:
            raise error_from_result(result)


def explained(connection: Connection[Any], error: psycopg.Error, what: str) -> CdcError:
    """ConnectError when the server is lost or ends our session. All else would come again, time-outs and limits too."""
    if connection.closed or (error.sqlstate or "").startswith(("08", "57P")):
        return connect_error(error)
    return Refused(f"PostgreSQL does not take {what}: {said(error)}", hint=_HINT)


def keep(connection: Connection[Any], identity: UUID, table: str, condition: str) -> None:
    """For the reader; committed before the request. Raises PreconditionError, ConnectError."""
    try:
        connection.execute(_FORGET)
        connection.execute(_KEEP, (identity, table, condition))
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName, psycopg.errors.InsufficientPrivilege) as e:
        raise PreconditionError(
            f"conditions cannot be handed to the reader: {said(e)}",
            hint="run `cdc init`, and GRANT cdc_operator to this user",
        ) from e
    except psycopg.Error as error:
        raise connect_error(error) from error


def find(connection: Connection[Any], identity: str, table: str) -> str:
    """As it was kept. Raises Refused when nobody who may kept one, ConnectError."""
    try:
        row = connection.execute(_FIND, (identity, table)).fetchone()
    except psycopg.Error as error:
        raise explained(connection, error, "the look into cdc.conditions") from error
    if row is None:
        raise Refused("there is no condition of this id in cdc.conditions", hint="use `cdc backfill --where`")
    return str(row[0])
