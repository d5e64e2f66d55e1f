"""A record's JSON → the values Redis holds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.config import Table
from cdc.errors import ConfigError, RecordError
from consumers.redis.rows import DELETE, RowEncoder
from consumers.store import Record

HEAD = 7  # position, vector, shape, ts, _key, index key, score
POSITION = b"0" * 32


def encoder(**settings: Any) -> RowEncoder:
    return RowEncoder("public.t", Table(**settings), "bytes", "t:by_user:")


def record(after: bytes, op: bytes = b"u") -> Record:
    value = b'{"before":null,"after":%b,"source":{"ts_us":7,"table":"t"},"op":"%b","ts_ms":1}' % (after, op)
    return Record(b'{"id":1}', value, POSITION, b"{}", 0, 0)


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=["Cs"])),
    ),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(row=st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), JSON, min_size=1))
def test_every_value_keeps_its_text(row: dict[str, Any]) -> None:
    made = encoder()
    encoded = made.encode(record(msgspec.json.encode(row)), None)
    assert made.shapes[encoded[2] - 1] == tuple(row)
    expected = [
        None if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()
        for value in row.values()
    ]
    assert encoded[HEAD:] == expected


@pytest.mark.parametrize("number", ["-0", "-0.0", "1.50", "1e5", "1E+5", "0", "18446744073709551616", "-1.0e-400"])
def test_numbers_keep_their_digits(number: str) -> None:
    assert encoder().encode(record(b'{"n":%b}' % number.encode()), None)[HEAD:] == [number]


def test_deletes_and_tombstones() -> None:
    assert encoder().encode(record(b"null", b"d"), None) == ["0" * 32, "{}", DELETE]
    assert encoder().encode(record(b"null", b"d")._replace(value=None), None) == ["0" * 32, "{}", DELETE]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('"1970-01-01T00:00:00.000001Z"', "1"),
        ('"2025-01-01 00:00:00.123456+00"', "1735689600123456"),
        ('"2025-01-01T05:30:00+05:30"', "1735689600000000"),
        ('"2025-01-01"', "1735689600000000"),
        ('"1969-12-31T23:59:59.999999"', "-1"),
        ('"infinity"', "+inf"),
        ('"-infinity"', "-inf"),
        ('"0044-03-15 00:00:00+00 BC"', "-inf"),
        ('"12025-01-01T00:00:00Z"', "+inf"),
        ("1735689600123456", "1735689600123456"),
        ("null", "7"),
    ],
)
def test_recency_is_microseconds(text: str, score: str) -> None:
    made = encoder(user="u", recency="at").encode(record(b'{"u":"a:b","at":%b}' % text.encode()), None)
    assert made[5:7] == ["t:by_user:a%3Ab", score]


@pytest.mark.parametrize("user", ["null"])
def test_no_user_no_index(user: str) -> None:
    made = encoder(user="u").encode(record(b'{"u":%b}' % user.encode()), None)
    assert made[5:7] == [None, None]


@pytest.mark.parametrize(
    ("settings", "after", "reason"),
    [
        ({}, b"{", "decode"),
        ({}, b'{"a":"\xff"}', "decode"),
        ({"user": "u", "recency": "at"}, b'{"u":"a","at":"noon"}', "recency"),
        ({"vector": "v"}, b'{"v":"1,2"}', "vector"),
        ({"vector": "v"}, b'{"v":[1,2]}', "vector"),
        ({"vector": "v"}, b'{"v":7}', "vector"),
    ],
)
def test_what_cannot_be_stored_has_a_reason(settings: dict[str, str], after: bytes, reason: str) -> None:
    with pytest.raises(RecordError) as caught:
        encoder(**settings).encode(record(after), None)
    assert caught.value.reason == reason


def test_markers_are_not_rows() -> None:
    """Nor is any op but c, u, r and d, nor a change that has lost its row."""
    for op in (b"t", b"x", b"c "):
        with pytest.raises(RecordError) as caught:
            encoder().encode(record(b'{"id":1}', op), None)
        assert caught.value.reason == "op"
    with pytest.raises(RecordError, match="without its row"):
        encoder().encode(record(b"null", b"u"), None)


@pytest.mark.parametrize("settings", [{"user": "u"}, {"user": "id", "recency": "r"}])
def test_settings_have_to_fit_the_table(settings: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="no such column"):
        encoder(**settings).encode(record(b'{"id":1}'), None)
