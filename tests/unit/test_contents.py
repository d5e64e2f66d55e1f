"""What verify takes for equal: every field in Redis, vector and version in the index."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from cdc.commands.contents import RedisContent, _shortest, overlapped
from cdc.commands.index_content import IndexContent, digest
from cdc.config import Config, parse
from cdc.envelope import encode_floats
from cdc.errors import StoreError
from consumers.faiss.digests import text_of
from consumers.faiss.ledger import State
from consumers.faiss.metric import prepare
from consumers.store import Version
from tests.chance import seeded

KEY = b'{"id":1}'
VECTOR = np.array([1, 2, 2], dtype=np.float32)


def config_of(metric: str = "l2", **table: Any) -> Config:
    return parse(
        {
            "postgres": {"dsn": "dbname=x"},
            "kafka": {"bootstrap": "x"},
            "tables": {"public.memories": table},
            "faiss": {"metric": metric, "dimension": 3},
        }
    )


class Index:
    """Holds one record; counts how often it is asked for the vector itself."""

    def __init__(self, vector: Any, version: bytes) -> None:
        self._held = (Version(b"0" * 32, version), vector)
        self.asked = 0

    async def records(self, schema: str, table: str, keys: Sequence[bytes]) -> list[Any]:
        self.asked += 1
        return [self._held for _key in keys]

    async def digests(
        self, schema: str, table: str, keys: Sequence[bytes], *, versions: bool, each: bool, vectors: bool = True
    ) -> list[str]:
        version, vector = self._held
        state = State.BARE if vector is None else State.LIVE
        held = text_of(state, vector if vectors else None, version.vector if versions else b"", b"")
        texts = [held] * len(keys)
        return [digest(text) for text in texts] if each else [digest(b"".join(texts))]


def row(vector: Any = VECTOR, counter: int = 3) -> bytes:
    wire = None if vector is None else encode_floats(vector)
    return json.dumps({"id": 1, "embedding": wire, "versions": json.dumps({"a": counter})}).encode()


@pytest.mark.parametrize(
    ("held", "version", "expected"),
    [
        (VECTOR, b'{"a":3}', True),
        (np.nextafter(VECTOR, np.float32(9)), b'{"a":3}', False),  # one bit
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


TABLE = ("public", "memories")


def any_of(index: Index) -> Any:
    """In the place of a RemoteIndex."""
    return index


def elsewhere(vector: Any, ulps: int) -> Any:
    """Divided by a length that was summed in another order."""
    length = np.float32(np.linalg.norm(vector.astype(np.float64)))
    for _ in range(ulps):
        length = np.nextafter(length, np.float32(np.inf))
    return vector / length


async def test_under_cosine_one_changed_bit_is_seen_and_another_order_of_sums_is_not() -> None:
    rng = np.random.default_rng(seeded("cosine").randrange(1 << 32))
    config = config_of("cosine", vector="embedding")
    config = config.model_copy(update={"faiss": config.faiss.model_copy(update={"dimension": 384})})
    for scale in (1e-20, 1.0, 1e15):
        vector = (rng.standard_normal(384) * scale).astype(np.float32)
        for ulps in (0, 1, 7):
            held = elsewhere(vector, ulps)
            assert await IndexContent(config, *TABLE, any_of(Index(held, b"{}"))).matches([(KEY, row(vector))]) == [
                True
            ]
            spoilt = held.copy()
            at = int(rng.integers(384))
            spoilt[at] = np.nextafter(spoilt[at], np.float32(9))
            content = IndexContent(config, *TABLE, any_of(Index(spoilt, b"{}")))
            assert await content.matches([(KEY, row(vector))]) == [False]


async def test_what_is_the_same_to_the_bit_is_told_by_the_checksum_alone() -> None:
    for metric in ("l2", "cosine"):
        index = Index(prepare(VECTOR[None], metric)[0][0], b"{}")  # type: ignore[arg-type]
        content = IndexContent(config_of(metric, vector="embedding"), *TABLE, any_of(index))
        assert await content.matches([(KEY, row())]) == [True]
        assert index.asked == 0


@pytest.mark.parametrize("size", [0, 31, 32, 255, 256, 65_535, 65_536])
def test_vectors_have_the_shortest_header(size: int) -> None:
    raw = b"x" * size
    packed = msgspec.Raw(b"\xdb" + size.to_bytes(4, "big") + raw)
    assert bytes(_shortest(packed)) == msgspec.msgpack.encode(raw.decode())  # type: ignore[arg-type]


def test_fields_of_a_row() -> None:
    unused: Any = None
    content = RedisContent(config_of(vector="embedding"), "public", "memories", unused)
    line = b'{"id":1,"ok":true,"note":null,"n":1.50,"tags":["a"],"embedding":"%b"}' % encode_floats(VECTOR).encode()
    assert content.fields(KEY, line) == {
        b"id": b"1", b"ok": b"true", b"n": b"1.50", b"tags": b'["a"]', b"embedding": VECTOR.tobytes(),
    }  # fmt: skip


async def test_an_error_of_a_server_comes_out_as_it_is() -> None:
    """Not in a group, which no command would know; what still runs is ended."""
    ended: list[int] = []

    async def work(number: int) -> int:
        if number == 1:
            raise StoreError("away", hint="wait")
        try:
            await asyncio.sleep(0 if number == 0 else 3600)
        finally:
            ended.append(number)
        return number

    with pytest.raises(StoreError):
        await overlapped(work(number) for number in range(3))
    assert ended == [0, 2]
    assert await overlapped(work(0) for _ in range(3)) == [0, 0, 0]
