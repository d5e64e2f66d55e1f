"""The codec of every type: PostgreSQL's text output (non-null, under the pinned settings) → JSON fragment.

The wire forms and how to load them back are in docs/types.md. Whatever has no form of its own travels as a JSON
string of its text, so that no type is ever lost. Codecs raise DecodeError on text that PostgreSQL does not write.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass

import msgspec

from cdc.errors import DecodeError
from cdc.source.arrays import array_codec
from cdc.source.events import Codec
from cdc.source.vectors import Width, vector_codec

# Built-in types have fixed oids (pg_type.dat).
BOOL, BYTEA, INT8, INT2, INT4, TEXT, OID, FLOAT4, FLOAT8, NUMERIC = 16, 17, 20, 21, 23, 25, 26, 700, 701, 1700
INTEGERS = frozenset((INT2, INT4, INT8, OID))
FLOATS = frozenset((FLOAT4, FLOAT8))
NONFINITE = FLOATS | {NUMERIC}

_HINT = "pin the session's settings (docs/types.md)"
_INTEGER = re.compile(rb"-?[0-9]+")
_FLOAT = re.compile(rb"-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?")
_NUMERIC = re.compile(rb"-?[0-9]+(?:\.[0-9]+)?|NaN|-?Infinity")
_SPECIAL = frozenset((b"NaN", b"Infinity", b"-Infinity"))
_BOOLEANS = {b"t": b"true", b"f": b"false", b"true": b"true", b"false": b"false"}
_json = msgspec.json.encode


@dataclass(frozen=True, slots=True)
class PgType:
    """What of pg_type decides the wire form. `extension` is the one that owns the type, or empty.

    `cast_to_text`: the cast to text is a function of its own and may differ from the type's output (bool, char(n),
    inet).
    """

    oid: int
    name: str
    base: PgType | None = None
    element: PgType | None = None
    delimiter: str = ","
    extension: str = ""
    cast_to_text: bool = False

    @property
    def plain(self) -> PgType:
        """The type below all domains."""
        return self if self.base is None else self.base.plain


def string(text: bytes) -> bytes:
    """JSON string of the text."""
    try:
        return _json(str(text, "utf-8"))
    except UnicodeDecodeError as error:
        raise DecodeError(
            f"text is not UTF-8 at byte {error.start}", hint="the database has to be encoded in UTF8"
        ) from error


def integer(text: bytes) -> bytes:
    """The digits."""
    if _INTEGER.fullmatch(text) is None:
        raise _not("an integer")
    return text


def floating(text: bytes) -> bytes:
    """The shortest digits that give the float back; NaN and ±Infinity as strings, for JSON has no such numbers."""
    if _FLOAT.fullmatch(text) is not None:
        return text
    if text in _SPECIAL:
        return b'"%b"' % text
    raise _not("a float")


def numeric(text: bytes) -> bytes:
    """A JSON string of exactly these digits: readers of JSON numbers would round them."""
    if _NUMERIC.fullmatch(text) is None:
        raise _not("a numeric")
    return b'"%b"' % text


def boolean(text: bytes) -> bytes:
    """true or false."""
    fragment = _BOOLEANS.get(text)
    if fragment is None:
        raise _not("a boolean")
    return fragment


def binary(text: bytes) -> bytes:
    """bytea's hex form → base64 string, as Debezium has it."""
    try:
        if text[:2] != b"\\x":
            raise ValueError
        return b'"%b"' % binascii.b2a_base64(binascii.a2b_hex(text[2:]), newline=False)
    except ValueError as error:  # binascii.Error is one
        raise _not("a bytea in hex") from error


def _not(what: str) -> DecodeError:
    return DecodeError(f"a value is not {what} as PostgreSQL writes it", hint=_HINT)


_BUILT_IN: dict[int, Codec] = {
    **dict.fromkeys(INTEGERS, integer),
    **dict.fromkeys(FLOATS, floating),
    BOOL: boolean,
    NUMERIC: numeric,
    BYTEA: binary,
}


def codec(kind: PgType, *, vector: bool = False) -> Codec:
    """The codec of a type; `vector` when the config names the column as the table's vector."""
    kind = kind.plain
    if kind.element is not None:
        array = array_codec(codec(kind.element), kind.delimiter.encode())
        width = _width(kind.element) if vector else None
        return array if width is None else vector_codec(width, array)
    if kind.extension == "vector" and kind.name in ("vector", "halfvec"):
        return vector_codec("f", string)
    return _BUILT_IN.get(kind.oid, string)


def _width(element: PgType) -> Width | None:
    """How wide the elements of a vector travel; None when they are no numbers."""
    oid = element.plain.oid
    if oid == FLOAT8:
        return "d"
    return "f" if oid in NONFINITE | INTEGERS else None
