"""Vectors: text of a float array or of pgvector's types → `"f32:<base64>"` (`f64:` for float8[]).

Decimal text is what makes vectors slow everywhere downstream, so it ends here. A vector with NULL elements or of more
than one dimension is no vector: it stays a JSON array.
"""

from __future__ import annotations

import binascii
import sys
from array import array
from typing import Literal

import msgspec

from cdc.errors import MALFORMED, DecodeError
from cdc.source.arrays import body
from cdc.source.events import Codec

Width = Literal["f", "d"]  # array module's type codes: float32, float64

_floats = msgspec.json.Decoder(list[float]).decode
_TAGS: dict[Width, bytes] = {"f": b'"f32:', "d": b'"f64:'}
_SPECIAL = frozenset((b"NaN", b"Infinity", b"-Infinity"))


def pack(values: list[float], width: Width) -> bytes:
    """Floats → JSON fragment, little-endian whatever the machine; beyond float32's range becomes ±Infinity."""
    packed = array(width, values)
    if sys.byteorder == "big":
        packed.byteswap()
    return _TAGS[width] + binascii.b2a_base64(packed, newline=False) + b'"'


def vector_codec(width: Width, otherwise: Codec) -> Codec:
    """Codec of a vector in `{…}` (arrays) or `[…]` (pgvector); what is no vector goes to `otherwise`."""

    def encode(text: bytes) -> bytes:
        literal = body(text) if text[-1:] == b"}" else text
        if literal[:1] + literal[-1:] not in (b"{}", b"[]"):
            raise DecodeError("a vector is malformed at byte 0", hint="expected {1,2,3} or [1,2,3]")
        inner = literal[1:-1]
        if b"-0," in inner or inner.endswith(b"-0"):  # to JSON that is an integer, which has no negative zero
            inner = (inner + b",").replace(b"-0,", b"-0.0,")[:-1]
        try:
            return pack(_floats(b"[%b]" % inner), width)
        except MALFORMED:
            values = _nonfinite(inner)
            return otherwise(text) if values is None else pack(values, width)

    return encode


def _nonfinite(inner: bytes) -> list[float] | None:
    """Floats with NaN or ±Infinity among them, which JSON cannot spell; None when there is anything else."""
    parts = inner.split(b",")
    if not _SPECIAL.intersection(parts):
        return None
    try:
        return [float(part) for part in parts]
    except ValueError:
        return None
