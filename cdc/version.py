"""Version vectors: `{origin: counter}`, ordering writes of several writers.

A vector dominates another when no counter is smaller and one is greater (Parker et al., "Detection of
mutual inconsistency in distributed systems", 1983). With one writer the position decides alone and the vector
is `{source name: commit LSN}`; a table with a `version_column` brings its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import msgspec

from cdc.errors import MALFORMED, DecodeError

Vector = Mapping[str, int]
_DECODER = msgspec.json.Decoder(dict[str, int])


class Order(Enum):
    """How the left vector stands to the right one."""

    EQUAL = "equal"
    BEFORE = "before"
    AFTER = "after"
    CONCURRENT = "concurrent"


def compare(left: Vector, right: Vector) -> Order:
    """A missing origin counts 0."""
    origins = left.keys() | right.keys()
    less = any(left.get(o, 0) < right.get(o, 0) for o in origins)
    more = any(left.get(o, 0) > right.get(o, 0) for o in origins)
    if less and more:
        return Order.CONCURRENT
    return Order.BEFORE if less else Order.AFTER if more else Order.EQUAL


def merge(left: Vector, right: Vector) -> dict[str, int]:
    """The smallest vector that neither input is after."""
    return {o: max(left.get(o, 0), right.get(o, 0)) for o in sorted(left.keys() | right.keys())}


def encode_vector(vector: Vector) -> bytes:
    """Canonical JSON: sorted origins, no spaces; equal vectors have equal bytes."""
    return msgspec.json.encode(dict(sorted(vector.items())))


def decode_vector(data: bytes | str) -> dict[str, int]:
    """JSON object of origin → counter ≥ 0; raises DecodeError."""
    try:
        vector = _DECODER.decode(data)
    except MALFORMED as error:
        raise DecodeError("a version vector does not parse", hint='expected {"origin": counter}') from error
    if any(counter < 0 for counter in vector.values()):
        raise DecodeError("a version vector has a negative counter", hint="counters start at 0")
    return vector
