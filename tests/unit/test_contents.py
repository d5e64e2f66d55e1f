"""What verify takes for equal: every field in Redis, vector and version in the index."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cdc.commands.contents import IndexContent, RedisContent
from cdc.config import Config, parse
from cdc.envelope import encode_floats
from consumers.store import Version

KEY = b'{"id":1}'
VECTOR = np.array([1, 2, 2], dtype=np.float32)


def config_of(**table: Any) -> Config:
    return parse(
        {
            "postgres": {"dsn": "dbname=x"},
            "kafka": {"bootstrap": "x"},
            "tables": {"public.memories": table},
            "faiss": {"metric": "l2"},
        }
    )


class Index:
    """Holds one record."""

    def __init__(self, vector: Any, version: bytes) -> None:
        self._held = (Version(b"0" * 32, version), vector)

    async def records(self, schema: str, table: str, keys: Sequence[bytes]) -> list[Any]:
        return [self._held for _key in keys]


def row(vector: Any = VECTOR, counter: int = 3) -> bytes:
    wire = None if vector is None else encode_floats(vector)
    return json.dumps({"id": 1, "embedding": wire, "versions": json.dumps({"a": counter})}).encode()


@pytest.mark.parametrize(
    ("held", "version", "expected"),
    [
        (VECTOR, b'{"a":3}', True),
        (VECTOR * np.float32(1 + 1e-6), b'{"a":3}', True),  # rounding
        (VECTOR[::-1], b'{"a":3}', False),
        (VECTOR[:2], b'{"a":3}', False),
        (None, b'{"a":3}', False),
        (VECTOR, b'{"a":2}', False),
    ],
)
async def test_vector_and_version(held: Any, version: bytes, expected: bool) -> None:
    config = config_of(vector="embedding", version_column="versions")
    index: Any = Index(held, version)
    content = IndexContent(config, "public", "memories", index)
    assert await content.matches([(KEY, row())]) == [expected]


async def test_a_row_without_a_vector_has_none_in_the_index() -> None:
    config = config_of(vector="embedding")
    for held, expected in ((None, True), (VECTOR, False)):
        index: Any = Index(held, b"{}")
        assert await IndexContent(config, "public", "memories", index).matches([(KEY, row(None))]) == [expected]


def test_fields_of_a_row() -> None:
    unused: Any = None
    content = RedisContent(config_of(vector="embedding"), "public", "memories", unused)
    line = b'{"id":1,"ok":true,"note":null,"n":1.50,"tags":["a"],"embedding":"%b"}' % encode_floats(VECTOR).encode()
    assert content.fields(KEY, line) == {
        b"id": b"1", b"ok": b"true", b"n": b"1.50", b"tags": b'["a"]', b"embedding": VECTOR.tobytes(),
    }  # fmt: skip
