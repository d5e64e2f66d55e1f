"""A block's records: packed by the compiled half, the very bytes that its records make one by one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.kafka import block as blocks
from cdc.kafka.batch import COMPILED, Batch, compiled
from cdc.kafka.block import Block, Rows
from cdc.kafka.chunk import Batches, Packer

needs_compiled = pytest.mark.skipif(not COMPILED, reason="the compiled half is not there")
ROWS = st.lists(
    st.tuples(st.binary(max_size=20), st.binary(max_size=200), st.sampled_from([None, b'"a"'])), max_size=40
)
BEFORE = st.sampled_from([0, 8, 95, 9_990, 99_999_990, 4_294_967_200])  # so that ordinals grow in length


def block(rows: Rows, after: int, vector: bytes = b"v") -> Block:
    names = ("cdc.pos", "cdc.ver")
    half = Rows.of([*rows][: len(rows) // 2]), Rows.of([*rows][len(rows) // 2 :])
    rows = Rows([*half[0].pieces, *half[1].pieces], rows.count, rows.largest)
    return Block(rows, after, 1_767_225_600_000, b'{"op":"r"', b',"ordinal":', b"}", names, b"0" * 24, vector)


def one_by_one(block: Block, batches: list[Any], put: Any) -> None:
    """As without `pack`."""
    compiled.spread(list(block.records()), batches, put)


def built(given: Block, partitions: int, limit: int, packer: Packer) -> list[list[bytes]]:
    """The batches of each partition: a block twice, between records and a marker."""
    made = Batches("t", partitions, lambda: Batch(limit, "none", transactional=True), 1 << 20, packer)
    made.fill([(b"%d" % n, b"one", 1_767_225_600_007, []) for n in range(9)], [4], [(2, given), (5, given)])
    return [[batch._build() for batch in partition] for partition in made._sealed]


@needs_compiled
@given(rows=ROWS, after=BEFORE, partitions=st.integers(1, 5), limit=st.sampled_from([62, 300, 1000, 1 << 20]))
def test_packed_or_one_by_one(rows: list[Any], after: int, partitions: int, limit: int) -> None:
    made = block(Rows.of(rows), after)
    wanted = built(made, partitions, limit, Packer(compiled.spread, one_by_one))
    assert built(made, partitions, limit, Packer(compiled.spread, compiled.pack)) == wanted


@given(rows=ROWS, after=BEFORE)
def test_its_sizes_are_those_of_its_records(rows: list[Any], after: int) -> None:
    made = block(Rows.of([(key, body, None) for key, body, _ in rows]), after)
    sizes = [len(key) + len(value or b"") for key, value, _, _ in made.records()]
    assert made.nbytes == sum(sizes)
    assert made.largest >= max(sizes, default=0)


@given(rows=ROWS, data=st.data())
def test_without_some_keys(rows: list[Any], data: st.DataObject) -> None:
    keys = set(data.draw(st.lists(st.sampled_from([row[0] for row in rows] or [b""]))))
    left = Rows.of(rows).without(keys)
    assert list(left) == [row for row in rows if row[0] not in keys]
    assert len(left) == len(list(left))
    assert blocks._kept(Rows.of(rows).pieces[0], keys) == (left.pieces[0], left.count)


@needs_compiled
def test_compressed_ahead_or_when_it_is_sent() -> None:
    """The same bytes, the transaction's numbers in them."""
    made = [Batch(1 << 16, "zstd", transactional=True) for _ in range(2)]
    for batch in made:
        for number in range(100):
            batch.append(timestamp=number, key=b"%d" % number, value=b"v" * 100, headers=[])
    made[0].compress()
    before = made[0].size()
    for batch in made:
        batch._set_producer_state(7, 1, 40)
    assert made[0]._build() == made[1]._build()
    assert before == made[0].size() == len(made[0]._build()) < 1000
    assert made[0].record_count() == 100
