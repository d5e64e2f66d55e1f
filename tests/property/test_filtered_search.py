"""After any mix of changes, truncates, restarts and exchanged indexes, a filtered search finds what comparing every row
with the conditions, and then every vector with the query, finds; and never fewer than k when k exist.

The conditions are evaluated by a model of its own, over Decimal and datetime, as PostgreSQL would.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc.envelope import encode_floats
from cdc.errors import StoreError
from consumers.conditions import Condition, Kind, Where
from consumers.faiss import cells, filters
from consumers.faiss.columns import VectorColumn
from consumers.faiss.content import Content
from consumers.faiss.snapshot import Kindred, load, read_manifest, take, write
from consumers.faiss.training import build
from consumers.store import Record
from tests.vector_records import deletion, key_of, position

DIMENSION = 3
EVERY_LIST = 10_000  # nprobe at which a partitioned index is exact
COLUMNS: dict[str, Kind] = {"owner": "text", "score": "number", "at": "time", "seen": "boolean", "real": "number"}

owners = st.sampled_from(["ann", "bob", "007", "7", "2024-01-01", "", "é", "1.50"])
scores = st.sampled_from(["1.50", "1.5", "-0.05", "10", "9", "0", "NaN", "Infinity", "-Infinity", "9" * 25, "-0.0"])
times = st.sampled_from(
    [
        "2024-02-29",
        "2024-02-29 10:00:00+00",
        "2024-02-29 10:00:00.5+00",
        "2023-12-31 23:59:59.999999+00",
        "infinity",
        "-infinity",
        "0044-03-15 BC",
        "12024-01-01",
    ]
)
reals = st.sampled_from([0, 1, 0.1, -2.5, 1e300, "NaN", "Infinity", 7, -(1 << 63)])
rows = st.fixed_dictionaries(
    {
        "owner": st.none() | owners, "score": st.none() | scores, "at": st.none() | times,
        "seen": st.none() | st.booleans(), "real": st.none() | reals,
    }
)  # fmt: skip
numbers = st.integers(-3, 3)
vectors = st.lists(numbers, min_size=DIMENSION, max_size=DIMENSION).map(lambda v: np.array(v, dtype=np.float32))
changes = st.tuples(st.integers(0, 15), st.integers(1, 60), st.none() | st.just("delete") | vectors | vectors, rows)
steps = st.one_of(
    st.tuples(st.just("apply"), st.lists(changes, min_size=1, max_size=30)),
    st.tuples(st.just("apply"), st.lists(changes, min_size=1, max_size=30)),
    st.tuples(st.just("truncate"), st.integers(1, 40)),
    st.tuples(st.sampled_from(["restart", "flat", "ivf"]), st.none()),
)


def operands(column: str) -> Any:
    return {
        "owner": owners, "score": scores | st.sampled_from([1.5, 10, -1, 1e30]), "seen": st.booleans(),
        "at": times | st.sampled_from(["2024-02-29T12:00:00+02:00", "2024-01-01", "2024-02-29T10:00:00Z"]),
        "real": reals | st.sampled_from(["0.10", 10**20]),
    }[column]  # fmt: skip


def condition(column: str) -> Any:
    value = operands(column)
    bounds = st.tuples(*[st.none() | value] * 4).map(lambda four: Condition(None, *four))
    among = st.lists(value, max_size=3).map(lambda values: Condition(tuple(values)))
    return st.tuples(st.just(column), st.just(Condition(null=True)) | among | bounds)


conditions = st.lists(st.sampled_from(sorted(COLUMNS)).flatmap(condition), max_size=3).map(dict)


def ordered(column: str, value: Any) -> Any:
    """What PostgreSQL orders by."""
    if COLUMNS[column] == "number":
        number = Decimal(repr(value) if not isinstance(value, str) else value)
        return (2, 0) if number.is_nan() else (1 if number > 0 else -1, 0) if number.is_infinite() else (0, number)
    if COLUMNS[column] == "time":
        if value.endswith("infinity"):
            return (-9 if value.startswith("-") else 9, 0)
        if value.endswith("BC") or value[4] != "-":
            return (-1 if value.endswith("BC") else 1, value)
        moment = datetime.fromisoformat(value)
        return (0, moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    return value


def holds(column: str, asked: Condition, value: Any) -> bool:
    if asked.null or value is None:
        return asked.null and value is None
    own = ordered(column, value)
    return (
        (asked.among is None or any(own == ordered(column, v) for v in asked.among))
        and (asked.gt is None or own > ordered(column, asked.gt))
        and (asked.gte is None or own >= ordered(column, asked.gte))
        and (asked.lt is None or own < ordered(column, asked.lt))
        and (asked.lte is None or own <= ordered(column, asked.lte))
    )


def record(key: int, lsn: int, vector: Any, row: dict[str, Any]) -> Record:
    wire = None if vector is None else encode_floats(vector)
    event = {"before": None, "after": {"id": key, "embedding": wire, **row}, "op": "u", "ts_ms": 1}
    return Record(key_of(key), msgspec.json.encode(event), position(lsn), b'{"m":%d}' % lsn, 0, 0)


def empty() -> Content:
    return Content(VectorColumn("embedding", "ip", DIMENSION, tuple(COLUMNS)), "ip")


def restarted(content: Content) -> Content:
    with tempfile.TemporaryDirectory() as folder:
        kindred = Kindred("public.memories", content.source.label, "", "ip", DIMENSION, tuple(COLUMNS))
        path = Path(folder) / "snapshot-1"
        write(path, take(content, kindred))
        again = empty()
        load(path, read_manifest(path), again)
        return again


def exchanged(content: Content, kind: Any) -> None:
    if content.index is not None and content.index.size:
        content.touched = set()
        content.replace(build(kind, *content.index.dump(), "ip"))


def check(content: Content, live: dict[int, Any], asked: dict[str, Condition], query: Any, k: int) -> None:
    found = content.search(query[None], k, EVERY_LIST, Where(asked, COLUMNS))[0]
    fitting = {
        key_of(key): float(query @ vector)
        for key, (vector, row) in live.items()
        if all(holds(column, one, row[column]) for column, one in asked.items())
    }
    assert {hit.key for hit in found} <= fitting.keys()
    best = sorted(fitting.values(), reverse=True)[:k]
    np.testing.assert_allclose([hit.score for hit in found], best, atol=1e-4)
    assert len({hit.key for hit in found}) == len(found)


@settings(max_examples=150, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(steps, min_size=1, max_size=8),
    st.lists(conditions, min_size=1, max_size=4),
    vectors,
    st.integers(1, 18),
    st.sampled_from([0, 3_000]),
)
def test_a_filtered_search_finds_what_comparing_every_row_finds(
    work: Any, questions: Sequence[Any], query: Any, k: int, exact: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("consumers.faiss.ivf.EXACT", exact)
        patch.setattr(filters, "FIRST_TEXTS", 2)  # so that texts are let go of often
        content, held, known, floor = empty(), dict[int, Any](), dict[Any, Any](), 0
        for step, detail in work:
            if step == "apply":
                records = []
                for key, lsn, fresh, fields in detail:
                    vector, row = known.setdefault((key, lsn), (fresh, fields))
                    gone = isinstance(vector, str)
                    records.append(deletion(key, lsn) if gone else record(key, lsn, vector, row))
                    if lsn >= floor and (key not in held or lsn > held[key][0]):
                        held[key] = (lsn, None if gone else vector, row)
                content.apply(records)
            elif step == "truncate":
                content.truncate(position(detail))
                floor = max(floor, detail)
                held = {key: row for key, row in held.items() if row[0] >= detail}
            elif step == "restart":
                content = restarted(content)
            else:
                exchanged(content, step)
            live = {key: row[1:] for key, row in held.items() if row[1] is not None}
            for asked in questions:
                check(content, live, asked, query, k)


texts = st.text(max_size=12) | st.from_regex(r"-?[0-9]{1,20}(\.[0-9]{1,20})?", fullmatch=True) | times | scores
values = st.none() | st.booleans() | st.integers(-(1 << 64), 1 << 64) | st.floats(allow_nan=False) | texts
moments = st.datetimes().map(lambda moment: moment.isoformat(" "))
days = st.dates().map(lambda day: day.isoformat())


@settings(max_examples=200, deadline=None)
@given(st.lists(values | moments | moments.map(lambda text: f"{text}+00") | days, max_size=30))
def test_every_value_comes_back_as_it_was(given_values: list[Any]) -> None:
    column = filters.FilterColumn()
    tags, bits = column.encode(given_values)
    pairs = list(zip(tags.tolist(), bits.tolist(), strict=True))
    beyond: Callable[[Any], bool] = lambda value: type(value) is int and value not in cells.INT64  # noqa: E731
    for value, (tag, cell) in zip(given_values, pairs, strict=True):
        back = cells.decoded(column.texts, tag, cell)
        assert (str(value) if beyond(value) else value) == back
        assert type(back) is type(value) or beyond(value)
    same = {pair: repr(value) for pair, value in zip(pairs, given_values, strict=True)}
    assert [same[pair] for pair in pairs] == [repr(value) for value in given_values]


@pytest.mark.parametrize(
    ("column", "value"),
    [("at", "yesterday"), ("at", 5), ("score", "high"), ("score", True), ("seen", 1), ("owner", 7), ("real", "x")],
)
def test_a_value_of_another_kind_is_refused_without_being_repeated(column: str, value: Any) -> None:
    with pytest.raises(StoreError, match=f"the filter on {column} is not") as refused:
        empty().search(np.ones((1, 3), np.float32), 1, 1, Where({column: Condition((value,))}, COLUMNS))
    assert str(value) not in str(refused.value.message)


def test_a_column_that_is_not_kept_is_refused_with_those_that_are() -> None:
    with pytest.raises(StoreError, match="at, owner, real, score, seen"):
        empty().search(np.ones((1, 3), np.float32), 1, 1, Where({"secret": Condition(null=True)}))
