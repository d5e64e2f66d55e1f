"""Verify compares what searches filter by as well: each planted change of a value is found, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from cdc.commands.contents import record_of
from cdc.commands.index_content import IndexContent
from cdc.config import parse
from cdc.envelope import encode_floats
from consumers.faiss.columns import VectorColumn
from consumers.faiss.content import Content
from consumers.faiss.digests import digests
from consumers.faiss.filters import Cells
from consumers.faiss.metric import Metric
from tests.chance import seeded
from tests.vector_records import key_of, position

TABLE = ("public", "memories")
FILTERS = ("who", "at", "score")
ROWS, PLANTED = 300, 100


class Remote:
    """The index's service without HTTP. `odd`: vectors differ in their last bits, as another processor's do."""

    def __init__(self, content: Content) -> None:
        self.content = content

    async def digests(self, schema: str, table: str, keys: Sequence[bytes], **options: bool) -> list[str]:
        return digests(self.content, keys, **options)  # type: ignore[arg-type]

    async def records(self, schema: str, table: str, keys: Sequence[bytes]) -> list[Any]:
        return list(zip(self.content.versions(keys), map(self.content.vector_of, keys), strict=True))


def row(number: int, vector: Any) -> bytes:
    at = f"2026-01-{number % 28 + 1:02d} 10:00:00+00"
    fields = {"id": number, "embedding": encode_floats(vector), "who": f"u{number % 7}", "at": at}
    return msgspec.json.encode({**fields, "score": None if number % 5 == 0 else f"{number}.50"})


@pytest.mark.parametrize("metric", ["cosine", "l2"])
async def test_each_changed_value_is_found(metric: Metric) -> None:
    chance = seeded("planted values")
    vectors = np.random.default_rng(3).standard_normal((ROWS, 8), dtype=np.float32)
    content = Content(VectorColumn("embedding", metric, 8, FILTERS), metric)
    pairs = [(key_of(number), row(number, vectors[number])) for number in range(ROWS)]
    content.apply([record_of(*pair)._replace(position=position(9)) for pair in pairs])
    for place in chance.sample(range(ROWS), 50):  # within a unit in the last place: the row's own
        if metric == "cosine" and content.index is not None:
            again = vectors[place] / np.nextafter(np.float32(np.linalg.norm(vectors[place])), np.float32(9))
            content.index.put(np.array([place]), again[None].astype(np.float32))
    config = parse(
        {
            "postgres": {"dsn": ""},
            "kafka": {"bootstrap": "x"},
            "tables": {"public.memories": {"vector": "embedding"}},
            "faiss": {"metric": metric, "dimension": 8, "filters": FILTERS},
        }
    )
    assert IndexContent.columns(config, *TABLE) == {"embedding", *FILTERS}
    remote: Any = Remote(content)
    assert await IndexContent(config, *TABLE, remote).matches(pairs) == [True] * ROWS
    spoilt = set(chance.sample(range(ROWS), PLANTED))
    for place in spoilt:
        column = content.filters.columns[chance.choice(FILTERS)]
        value = chance.choice([7, "u99", "2027-01-01", True])
        tags, bits = column.encode([value])
        column.note(np.array([place]), Cells(tags, bits))
    found = await IndexContent(config, *TABLE, remote).matches(pairs)
    assert {place for place, equal in enumerate(found) if not equal} == spoilt
