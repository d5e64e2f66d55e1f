"""The demo's texts and its verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdc.demo.mending import differences_of
from cdc.demo.summary import Summary, Times
from cdc.demo.texts import standard_library
from cdc.errors import PreconditionError

EQUAL = {"postgresql": 3, "kafka": 9, "redis": 3, "faiss": 3}


def test_texts_are_thousands_each_once_and_always_the_same() -> None:
    texts = standard_library()
    assert len(texts) > 1000
    assert len({text.content for text in texts}) == len(texts)
    assert texts == standard_library()
    names = {text.name: text for text in texts}
    assert names["json.decoder.JSONDecoder"].kind == "class"
    assert names["json"].content.startswith("JSON")


def test_without_sources_the_reason_is_said(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def")
    with pytest.raises(PreconditionError, match="standard library are not in"):
        standard_library(tmp_path)


def test_quantiles_are_values_that_were_measured() -> None:
    times = Times.of([seconds / 1000 for seconds in range(100, 0, -1)])
    assert (times.p50, times.p99, times.samples) == (50, 99, 100)
    assert Times.of([0.25]) == Times(250, 250, 1)


def test_equal_needs_both_stores_compared_and_counted() -> None:
    summary = Summary(1, "3.11", rows=EQUAL, differences={"redis": 0, "faiss": 0})
    assert summary.equal
    for change in (
        {"differences": {"redis": 0}},
        {"differences": {"redis": 0, "faiss": 1}},
        {"rows": {**EQUAL, "faiss": 2}},
        {"rows": dict.fromkeys(EQUAL)},
        {"error": "a step failed"},
    ):
        assert not Summary(**{**vars(summary), **change}).equal, change


def test_differences_of_every_kind_and_table_count() -> None:
    kinds = {"missing": ["a"], "extra": [], "stale": ["b", "c"], "different": []}
    none: dict[str, list[str]] = {kind: [] for kind in kinds}
    report = {"comparisons": [{"store": "redis", **kinds}, {"store": "redis", **kinds}, {"store": "faiss", **none}]}
    assert differences_of(report) == {"redis": 6, "faiss": 0}
