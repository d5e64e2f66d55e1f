"""Keys as people and topics write them → texts that PostgreSQL takes, one a column of the key.

The way back from types.py for what can be a key. Whether it was the right way is never assumed: `topic_keys` has
PostgreSQL read the texts, and says which keys the topics would have.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg import Connection

from cdc.errors import DecodeError
from cdc.source.condition import Refused, explained
from cdc.source.connection import raw
from cdc.source.events import Table
from cdc.source.spans import Selection, Spans
from cdc.source.types import BYTEA, PgType

TypeOf = Callable[[int], PgType]


def parse_key(text: str, table: Table, type_of: TypeOf) -> list[str]:
    """A key as a person writes it: the column's text, or the topic's key (a JSON object). Raises Refused."""
    names = [table.columns[i].name for i in table.key]
    if text.startswith("{"):
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if isinstance(found, dict) and found.keys() == set(names):
            return key_texts(text.encode(), table, type_of)
    if len(names) == 1:
        return [text]
    shape = ", ".join(f'"{name}": …' for name in names)
    raise Refused(f"{table.schema}.{table.name} has a key of {len(names)} columns", hint=f"write keys as {{{shape}}}")


def key_texts(key: bytes, table: Table, type_of: TypeOf) -> list[str]:
    """Of a topic's key. Raises Refused for one that is none of this table's."""
    columns = [table.columns[i] for i in table.key]
    try:
        found = json.loads(key, parse_int=str, parse_float=str)
        if not isinstance(found, dict) or found.keys() != {column.name for column in columns}:
            raise TypeError
        return [_text(found[column.name], type_of(column.type_oid)) for column in columns]
    except (ValueError, TypeError, RecursionError) as error:  # binascii.Error is a ValueError
        raise Refused(
            f"a key is none of {table.schema}.{table.name}", hint="the table's key may have been another before"
        ) from error


def topic_keys(connection: Connection[Any], table: Table, keys: Sequence[Sequence[str]]) -> list[bytes]:
    """What the topics have for these keys, in their order. Raises Refused for texts that the types do not take,
    ConnectError."""
    columns = [table.columns[i] for i in table.key]
    if any(len(key) != len(columns) for key in keys):
        raise Refused(f"the key of {table.schema}.{table.name} has {len(columns)} columns", hint="give each of them")
    try:
        found = raw(connection).execute(Spans(table, (), Selection(keys)).wanted()).pgresult
        assert found is not None
        return [
            table.key_template % tuple(column.codec(found.get_value(row, n) or b"") for n, column in enumerate(columns))
            for row in range(found.ntuples)
        ]
    except (UnicodeEncodeError, DecodeError) as error:
        raise Refused("a key is no text of its type", hint="write keys as PostgreSQL shows them") from error
    except psycopg.Error as error:
        raise explained(connection, error, "a key") from error


def _text(value: Any, kind: PgType) -> str:
    kind = kind.plain
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, list):
        return _array(value, kind)
    if not isinstance(value, str):
        raise TypeError
    if kind.oid == BYTEA:
        return "\\x" + binascii.b2a_hex(base64.b64decode(value, validate=True)).decode()
    return value


def _array(values: list[Any], kind: PgType) -> str:
    if kind.element is None:
        raise TypeError
    return "{" + kind.delimiter.join(_element(value, kind) for value in values) + "}"


def _element(value: Any, kind: PgType) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, list):
        return _array(value, kind)
    assert kind.element is not None
    return '"' + _text(value, kind.element).replace("\\", "\\\\").replace('"', '\\"') + '"'
