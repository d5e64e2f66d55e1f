"""When a schedule is due, how long its longest pause is, and what of it is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cdc.config import Config, parse
from cdc.errors import ConfigError

MONDAY = datetime(2026, 11, 23, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def config(**schedules: Any) -> Config:
    return parse({"postgres": {"dsn": "host=nowhere"}, "kafka": {"bootstrap": "nowhere:1"}, "schedule": schedules})


def due(given: dict[str, Any], since: datetime, tried: datetime | None = None) -> datetime:
    return config(it={"kind": "prune", **given}).schedule["it"].due(since, tried)


def test_verify_and_prune_are_there_by_themselves() -> None:
    assert {n: (s.kind, s.period, s.enabled) for n, s in config().schedule.items()} == {
        "verify": ("verify", DAY, True),
        "prune": ("prune", DAY, True),
    }
    told = config(verify={"cron": "0 3 * * mon"}, prune={"enabled": False}).schedule
    assert (told["verify"].every, told["verify"].period, told["prune"].enabled) == (None, 7 * DAY, False)


def test_the_next_run_follows_from_the_last_success() -> None:
    assert due({"every": "6h"}, MONDAY) == MONDAY + 6 * HOUR
    assert due({"cron": "0 3 * * *"}, MONDAY) == MONDAY + 15 * HOUR
    assert due({"cron": "0 12 * * *"}, MONDAY) == MONDAY + DAY, "a success at its very moment is that one's"
    assert due({"cron": "30 8 * * fri"}, MONDAY) == datetime(2026, 11, 27, 8, 30, tzinfo=UTC)


def test_a_run_that_failed_is_tried_again_sooner() -> None:
    assert due({"every": "1d"}, MONDAY, MONDAY + DAY) == MONDAY + DAY + HOUR
    assert due({"every": "10m"}, MONDAY, MONDAY + HOUR) == MONDAY + HOUR + timedelta(minutes=1)
    assert due({"every": "5s"}, MONDAY, MONDAY + HOUR) == MONDAY + HOUR + timedelta(seconds=5)
    assert due({"cron": "0 3 * * *"}, MONDAY, MONDAY + 15 * HOUR) == MONDAY + 16 * HOUR
    assert due({"every": "1d"}, MONDAY, MONDAY - HOUR) == MONDAY + DAY, "the run that succeeded is no failure"


@pytest.mark.parametrize(
    ("cron", "longest"),
    [
        ("*/7 * * * *", timedelta(minutes=7)),
        ("*/5 9-17 * * mon-fri", timedelta(days=2, hours=15, minutes=5)),
        ("0 3 * * mon,tue", 6 * DAY),
        ("0 3 1 * *", 31 * DAY),
        ("0 3 * 1-3 *", 276 * DAY),
    ],
)
def test_the_longest_time_between_two_runs(cron: str, longest: timedelta) -> None:
    assert config(it={"kind": "prune", "cron": cron}).schedule["it"].period == longest


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "prune"}, "needs either every"),
        ({"kind": "prune", "every": "1d", "cron": "0 3 * * *"}, "needs either every"),
        ({"kind": "prune", "every": "0d"}, "as in 6h"),
        ({"kind": "prune", "every": "daily"}, "as in 6h"),
        ({"kind": "prune", "cron": "61 * * * *"}, "61"),
        ({"kind": "prune", "cron": "0 3 30 feb *"}, "never comes"),
        ({"kind": "prune", "cron": "0 3 * * 0"}, "name the days of the week"),
        ({"kind": "dance", "every": "1d"}, "'verify'"),
        ({"kind": "command", "every": "1d"}, "argv"),
        ({"kind": "command", "every": "1d", "arguments": {"argv": []}}, "argv"),
        ({"kind": "prune", "every": "1d", "when": "now"}, "when"),
    ],
)
def test_what_cannot_be_is_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config(it=given)
    assert said in refused.value.message
    assert "schedule.it" in refused.value.message


def test_a_name_is_a_label() -> None:
    with pytest.raises(ConfigError, match="letters, digits"):
        config(**{"a name": {"kind": "prune", "every": "1d"}})
