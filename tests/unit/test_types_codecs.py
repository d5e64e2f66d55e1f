"""Codecs, array literals, vectors and masks without a server."""

from __future__ import annotations

import hmac

import pytest

from cdc.config import parse
from cdc.errors import ConfigError, DecodeError
from cdc.source.arrays import array_codec
from cdc.source.masking import masked, redact
from cdc.source.types import BOOL, BYTEA, FLOAT4, INT4, NUMERIC, PgType, codec, integer, string
from cdc.source.vectors import pack, vector_codec

UNKNOWN_OID = 424242


@pytest.mark.parametrize(
    ("oid", "text", "fragment"),
    [
        (INT4, b"-5", b"-5"),
        (FLOAT4, b"1e+20", b"1e+20"),
        (FLOAT4, b"-Infinity", b'"-Infinity"'),
        (NUMERIC, b"1.50", b'"1.50"'),
        (NUMERIC, b"NaN", b'"NaN"'),
        (BOOL, b"t", b"true"),
        (BOOL, b"false", b"false"),
        (BYTEA, b"\\x00ff", b'"AP8="'),
        (UNKNOWN_OID, '<"é">'.encode(), '"<\\"é\\">"'.encode()),
    ],
)
def test_wire_forms(oid: int, text: bytes, fragment: bytes) -> None:
    assert codec(PgType(oid, "t"))(text) == fragment
    assert codec(PgType(1, "domain", base=PgType(2, "domain", base=PgType(oid, "t"))))(text) == fragment


@pytest.mark.parametrize(
    ("oid", "text"),
    [
        (INT4, b"1.5"),
        (INT4, b""),
        (FLOAT4, b"nan"),
        (FLOAT4, b"1."),
        (NUMERIC, b"1e5"),
        (BOOL, b"yes"),
        (BYTEA, b"00ff"),
        (BYTEA, b"\\x0"),
        (UNKNOWN_OID, b"\xff"),
    ],
)
def test_what_postgresql_does_not_write_is_refused(oid: int, text: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        codec(PgType(oid, "t"))(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("literal", "fragment"),
    [
        (b"{}", b"[]"),
        (b"{1,NULL}", b"[1,null]"),
        (b"{{1,2},{3,4}}", b"[[1,2],[3,4]]"),
        (b"[2:3][-1:0]={{1,2},{3,4}}", b"[[1,2],[3,4]]"),
        (b'{"1",NULL}', b"[1,null]"),
    ],
)
def test_array_literals(literal: bytes, fragment: bytes) -> None:
    assert array_codec(integer)(literal) == fragment


def test_quoted_elements_and_other_delimiters() -> None:
    assert array_codec(string)(b'{"NULL",NULL,"a\\"b\\\\,{}",c d}') == b'["NULL",null,"a\\"b\\\\,{}","c d"]'
    assert array_codec(string, b";")(b"{(3,4),(1,2);NULL}") == b'["(3,4),(1,2)",null]'


@pytest.mark.parametrize(
    "literal",
    [
        b"",
        b"{",
        b"}",
        b"{1",
        b"1}",
        b"{1,}",
        b"{,}",
        b"{1}x}",
        b"{{1}",
        b'{"1}',
        b'{1"2"}',
        b"[1:2={1}",
        b"{{{{{{{1}}}}}}}",
    ],
)
def test_malformed_arrays_are_refused(literal: bytes) -> None:
    with pytest.raises(DecodeError, match=r"at byte \d+"):
        array_codec(integer)(literal)


def test_vectors() -> None:
    encode = vector_codec("f", array_codec(string))
    assert encode(b"{1,-2}") == encode(b"[1,-2]") == encode(b"[3:4]={1,-2}") == b'"f32:AACAPwAAAMA="'
    assert encode(b"{1e300,NaN}") == pack([float("inf"), float("nan")], "f")
    assert encode(b"{1,NULL}") == b'["1",null]'
    assert encode(b"{NaN,NULL}") == b'["NaN",null]'
    assert encode(b"{{1},{2}}") == b'[["1"],["2"]]'
    for text in (b"", b"1,2", b"{1,2]", b"{1", b"{1}}"):
        with pytest.raises(DecodeError):
            encode(text)


def test_masks() -> None:
    config = parse({"postgres": {"dsn": ""}, "kafka": {"bootstrap": ""}, "mask_secret": "s"})
    assert masked(None, string, config) is string
    assert masked("redact", string, config) is redact
    assert redact(b"secret") == b'"***"'
    digest = hmac.digest(b"s", b"a", "sha256").hex().encode()
    assert masked("hash", string, config)(b"a") == b'"' + digest + b'"'
    without = parse({"postgres": {"dsn": ""}, "kafka": {"bootstrap": ""}})
    with pytest.raises(ConfigError, match="mask_secret"):
        masked("hash", string, without)
