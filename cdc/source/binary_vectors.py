"""Vectors in PostgreSQL's binary form → the wire form that `vectors` makes of their text: a third of the server's time,
a tenth of ours. For whoever needs vectors only.

Forms: `array_send` of src/backend/utils/adt/arrayfuncs.c, `vector_send` of pgvector's src/vector.c; all big-endian.
"""

from __future__ import annotations

import binascii
from typing import Any

import msgspec
import numpy as np

from cdc.errors import DecodeError
from cdc.source.events import Codec
from cdc.source.types import PgType
from cdc.source.vectors import pack

FLOAT4_ARRAY = 1021  # pg_type.dat
ARRAY_HEAD = 20  # of one dimension: dimensions, whether NULLs may be, element's oid, size, first index; int4 each
VECTOR_HEAD = 4  # dimension and an unused field, int2 each
_ELEMENT = np.dtype([("size", ">i4"), ("value", ">f4")])


def binary_codec(kind: PgType) -> Codec | None:
    """What reads the binary form of a type; None for types whose text is read."""
    if kind.oid == FLOAT4_ARRAY:
        return array
    return vector if kind.extension == "vector" and kind.name == "vector" else None


def array(raw: bytes) -> bytes:
    """real[]; one with NULLs or of another number of dimensions than one is no vector, and becomes JSON lists."""
    dimensions, nulls = np.frombuffer(raw, ">i4", 2).tolist()
    if dimensions == 0:
        return pack([], "f")
    if dimensions > 1 or nulls:
        return msgspec.json.encode(_lists(raw, dimensions))
    found = np.frombuffer(raw, _ELEMENT, offset=ARRAY_HEAD)["value"]
    return _packed(found)


def vector(raw: bytes) -> bytes:
    """pgvector's vector."""
    return _packed(np.frombuffer(raw, ">f4", offset=VECTOR_HEAD))


def _packed(values: Any) -> bytes:
    return b'"f32:%b"' % binascii.b2a_base64(values.astype("<f4").tobytes(), newline=False)


def _lists(raw: bytes, dimensions: int) -> Any:
    """Nested lists, None for NULL."""
    shape = np.frombuffer(raw, ">i4", 2 * dimensions, offset=12)[::2].tolist()
    values: list[Any] = []
    at = 12 + 8 * dimensions
    for _ in range(int(np.prod(shape))):
        size = int.from_bytes(raw[at : at + 4], "big", signed=True)
        at += 4
        values.append(None if size < 0 else float(np.frombuffer(raw, ">f4", 1, offset=at)[0]))
        at += max(0, size)
    if at != len(raw):
        raise DecodeError("an array is malformed in its binary form", hint="report this with the type's definition")
    for length in reversed(shape[1:]):
        values = [values[start : start + length] for start in range(0, len(values), length)]
    return values
