"""Round trips: any value → PostgreSQL's text → wire form → the same text again from PostgreSQL."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cdc.config import parse
from cdc.envelope import decode_floats
from cdc.errors import DecodeError
from cdc.source.catalog import Catalog
from cdc.source.connection import connect
from cdc.source.types import codec
from tests.type_samples import text_of

ROUND_TRIP = settings(
    max_examples=150,
    deadline=None,  # a server's answer takes what it takes
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))
FLOAT32 = st.floats(width=32)
SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "bigint": st.integers(-(1 << 63), (1 << 63) - 1),
    "numeric": st.decimals(allow_nan=True, allow_infinity=True).map(lambda d: Decimal("NaN") if d.is_nan() else d),
    "real": FLOAT32,
    "double precision": st.floats(),
    "text": TEXT,
    "bytea": st.binary(),
    "boolean": st.booleans(),
    "date": st.dates(),
    "timestamp": st.datetimes(),
    "interval": st.timedeltas(),
    "uuid": st.uuids(),
}


class Server:
    """A connection, and the types as the catalog sees them."""

    def __init__(self, dsn: str) -> None:
        config = parse({"postgres": {"dsn": dsn}, "kafka": {"bootstrap": "none"}})
        self.connection = connect(config.postgres)
        self.catalog = Catalog(self.connection, config)

    def text(self, value: Any, kind: str) -> str:
        """PostgreSQL's text of a value."""
        row = self.connection.execute(f"SELECT format('%%s', %s::{kind})".encode(), [value]).fetchone()
        assert row is not None
        return str(row[0])

    def wire(self, text: str, kind: str, *, vector: bool = False) -> bytes:
        """The JSON fragment of the text."""
        row = self.connection.execute(f"SELECT '{kind}'::regtype::oid::int8".encode()).fetchone()
        assert row is not None
        return codec(self.catalog.type_of(row[0]), vector=vector)(text.encode())


@pytest.fixture(scope="module")
def server(database: str) -> Iterator[Server]:
    """On this module's database."""
    server = Server(database)
    yield server
    server.catalog.close()


def check(server: Server, value: Any, kind: str) -> bytes:
    """The round trip; returns the fragment."""
    text = server.text(value, kind)
    fragment = server.wire(text, kind)
    json.loads(fragment)
    back = text_of(fragment, kind)
    assert server.text(back, f"text::{kind}") == text
    return fragment


@ROUND_TRIP
@given(data=st.data())
@pytest.mark.parametrize("kind", SCALARS)
def test_scalars(server: Server, kind: str, data: st.DataObject) -> None:
    check(server, data.draw(SCALARS[kind]), kind)


@ROUND_TRIP
@given(value=TEXT)
@example('\x7f\u2028</script>\\"\b\f')
def test_text_is_the_same_json_for_both_plugins(server: Server, value: str) -> None:
    fragment = check(server, value, "text")
    assert json.loads(fragment) == value


def nested(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Arrays of one to three dimensions, as PostgreSQL has them: every part of one dimension is equally long."""

    @st.composite
    def build(draw: st.DrawFn) -> Any:
        shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))

        def part(depth: int) -> Any:
            if depth == len(shape):
                return draw(st.none() | leaf)
            return [part(depth + 1) for _ in range(shape[depth])]

        return part(0)

    return build() | st.just([])


@ROUND_TRIP
@given(data=st.data())
@pytest.mark.parametrize("kind", ["text", "bigint", "real", "numeric", "bytea", "boolean", "uuid"])
def test_arrays(server: Server, kind: str, data: st.DataObject) -> None:
    values = data.draw(nested(SCALARS[kind]))
    fragment = check(server, values, f"{kind}[]")
    assert shape_of(json.loads(fragment)) == shape_of(values)


def shape_of(value: Any) -> Any:
    """Nesting and NULLs alone."""
    return [shape_of(item) for item in value] if isinstance(value, list) else value is None


def same(left: float, right: float) -> bool:
    """Equal, NaN too, and with the sign of zero."""
    return struct.pack("<d", left) == struct.pack("<d", right) or (math.isnan(left) and math.isnan(right))


@ROUND_TRIP
@given(values=st.lists(FLOAT32, min_size=1))
def test_vectors_are_exact(server: Server, values: list[float]) -> None:
    wire = server.wire(server.text(values, "real[]"), "real[]", vector=True)
    found = decode_floats(json.loads(wire)).tolist()
    assert len(found) == len(values)
    assert all(map(same, found, values))


@ROUND_TRIP
@given(text=st.text('{}",\\ abNUL;[]=:1', max_size=20))
def test_array_literals_are_read_strictly(server: Server, text: str) -> None:
    """What PostgreSQL accepts and writes is understood; all else is a DecodeError, never another."""
    try:
        written = server.text(text, "text::text[]")
    except psycopg.Error:
        with suppress(DecodeError):
            server.wire(text, "text[]")
    else:
        assert isinstance(json.loads(server.wire(written, "text[]")), list)
