"""What the benchmarks compute from what they saw: no server, no clock."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from benchmarks.drain import after_warm_up
from benchmarks.measure import Check, Comparison, Grid, Latency, Sample, latency
from benchmarks.observe import Waits, waits
from benchmarks.plot import chart, reached
from benchmarks.report import markdown
from benchmarks.source import Load
from benchmarks.workloads import STAR, smaller
from benchmarks.writer import TRANSACTIONS, WARM_SECONDS, Schedule


def test_rates_are_those_between_a_quarter_and_the_end() -> None:
    seen = [(Sample(0, 0), 0.0), (Sample(10, 250), 5.0), (Sample(11, 600), 5.1), (Sample(13, 1000), 5.3)]
    rate, cpu = after_warm_up(seen, 1000)
    assert rate == pytest.approx(750 / 3)
    assert cpu == pytest.approx(0.3 / 750 * 1e6)


def test_marks_of_kafka_and_tombstones_are_no_changes() -> None:
    seen = [(Sample(0, 0), 0.0), (Sample(1, 500), 0.0), (Sample(2, 2000), 0.0)]
    assert after_warm_up(seen, 1000)[0] == pytest.approx(750)


def test_what_came_at_once_counts_since_the_start() -> None:
    assert after_warm_up([(Sample(5, 0), 1.0), (Sample(7, 100), 2.0)], 100) == (50, 10_000)


@pytest.mark.parametrize(("value", "at_most", "missed"), [(2.1, True, True), (2, True, False), (1.9, False, True)])
def test_a_check_is_missed_on_the_wrong_side(value: float, at_most: bool, missed: bool) -> None:
    assert Check("it", value, 2, at_most=at_most).missed(quick=False) is missed


def test_few_rows_find_only_what_is_far_off() -> None:
    assert not Check("it", 4, 2).missed(quick=True)
    assert Check("it", 6, 2).missed(quick=True)
    assert not Check("it", 0.5, 1, at_most=False).missed(quick=True)
    assert Check("it", 0.3, 1, at_most=False).missed(quick=True)


def test_a_row_that_was_never_seen_took_for_ever() -> None:
    schedule = Schedule("", rate=200, seconds=1)
    commits = [n / TRANSACTIONS for n in range(len(schedule.watched))]
    seen = dict(zip(schedule.watched, (at + 0.01 for at in commits), strict=True))
    del seen[schedule.watched[-1]]
    found = waits({"commits": commits, "behind": 0.0}, seen, schedule.watched, schedule)
    assert len(found.seconds) == TRANSACTIONS  # without the warm-up
    assert found.seconds[0] == pytest.approx(0.01)
    assert math.isinf(found.seconds[-1])
    assert latency("", 200, found.seconds).record()["worst"] is None


def test_a_rate_is_kept_when_nobody_falls_behind() -> None:
    assert Waits((0.1,) * 100, behind=0.2).sustained
    assert not Waits((0.1,) * 100, behind=2).sustained
    assert not Waits(tuple(n / 50 for n in range(100)), behind=0).sustained


def test_a_schedule_watches_the_last_row_of_each_transaction() -> None:
    schedule = Schedule("", rate=1000, seconds=2, first=7)
    assert schedule.rows == 1000 * (2 + WARM_SECONDS)
    assert (schedule.watched[0], schedule.watched[-1]) == (17, 7 + schedule.rows)
    assert len(schedule.watched) == TRANSACTIONS * (2 + WARM_SECONDS)


@pytest.mark.parametrize("load", STAR, ids=lambda load: load.name)
def test_loads_are_whole_transactions_also_when_they_are_few(load: Load) -> None:
    for each in (load, smaller(load)):
        assert each.changes % each.transaction == 0
        assert each.changes // each.transaction >= each.writers
        if each.mixed:
            assert each.transaction % 10 == 0
            assert each.writers == 1


def test_the_chart_has_a_bar_for_each_target() -> None:
    aimed = Comparison("a & b", "bound", "rows/s", 60, (100, 100), 0.5)
    check = Check("memory", 300, 150, "MB")
    assert (reached(aimed), reached(check)) == (pytest.approx(1.2), 0.5)
    picture = ElementTree.fromstring(chart([aimed, check, Comparison("no target", "bound", "rows/s", 1, (1, 1))]))
    texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "a & b" in texts
    assert "no target" not in texts


def test_tables_for_the_docs_say_what_missed() -> None:
    found = [
        Comparison("reader", "pg_recvlogical", "rows/s", 50, (100, 100), 0.7, {"peak_mb": 140.5}),
        Check("memory", 140, 150, "MB"),
        Latency("commit", 1000, 5, 1.0, 2.0, 3.0),
        Grid("growth", ("rows", "rate"), ((10, "flat"),)),
    ]
    text = markdown(found, quick=False)
    assert "| reader | 50 | pg_recvlogical | 100 | 100 | rows/s | **0.50, missed** | ≥ 0.7 | ±0% |" in text
    assert "| memory | 140.00 MB | ≤ 150 |" in text
    assert "| commit | 1,000 | 1.0 | 2.0 | 3.0 | 5 |" in text
    assert "| 10 | flat |" in text
    assert "| reader | peak mb | 140.50 |" in text
