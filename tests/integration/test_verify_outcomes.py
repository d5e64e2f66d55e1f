"""What a comparison found goes into the control schema, whoever compared, and from there into the gateway's metrics."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from prometheus_client import REGISTRY

from cdc.commands.gateway_verifies import Verifies
from cdc.commands.outcome import Outcome, keep_outcome
from cdc.commands.verify import Step
from cdc.config import Config, parse
from cdc.control import verify_runs
from cdc.embedded import Endpoints
from cdc.migrations import migrate
from consumers.verify import Differences
from tests.pipeline import settings

TABLE = "public.memories"
POSITION = b"0" * 31 + b"7"


@pytest.fixture
def config(servers: Endpoints, database: str, tmp_path: Path) -> Config:
    """An empty control schema beside the canonical table."""
    migrate(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("TRUNCATE cdc.verify_runs")
    return parse(settings(servers, database, tmp_path))


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"cdc_verify_{name}", {"store": "redis", "table": TABLE, **labels})


def outcome(found: Differences | None = None, *, share: float = 1.0, error: str | None = None) -> Outcome:
    return Outcome("redis", TABLE, found or Differences(rows=7), False, 2.0, share, POSITION, error)


async def test_only_a_whole_comparison_that_found_nothing_has_passed(config: Config) -> None:
    verifies = Verifies(config)
    await verifies.round()
    assert (sample("passed_timestamp_seconds"), sample("timestamp_seconds")) == (0, None)
    counts = {kind: sample("runs_total", outcome=kind) or 0 for kind in ("equal", "different", "failed")}
    for unlike in (
        outcome(Differences(rows=7, missing=[b"k"])), outcome(share=0.5), outcome(error="Redis is away"),
        outcome(Differences(rows=7, faults=["the offset is ahead"])),
    ):  # fmt: skip
        keep_outcome(config, unlike, "test")
    await verifies.round()
    assert sample("passed_timestamp_seconds") == 0
    assert sample("timestamp_seconds")
    keep_outcome(config, outcome(Differences(rows=7, unsettled=[b"hot"])), "test")
    await verifies.round()
    passed = sample("passed_timestamp_seconds")
    assert passed
    assert sample("differences", kind="unsettled") == 1
    keep_outcome(config, outcome(error="Redis is away"), "test")
    await verifies.round()
    assert sample("passed_timestamp_seconds") == passed
    told = {kind: (sample("runs_total", outcome=kind) or 0) - before for kind, before in counts.items()}
    assert told == {"equal": 2, "different": 1, "failed": 3}


async def test_a_gateway_that_starts_again_knows_when_the_last_one_passed(config: Config) -> None:
    keep_outcome(config, outcome(), "test")
    keep_outcome(config, outcome(Differences(rows=7, extra=[b"k"])), "test")
    before = sample("runs_total", outcome="equal") or 0
    await Verifies(config).round()
    with psycopg.connect(config.postgres.dsn) as connection:
        first, second = verify_runs.since(connection, 0)
        assert (first.position, first.run_by, first.equal, second.equal) == (POSITION.decode(), "test", True, False)
        assert sample("passed_timestamp_seconds") == pytest.approx(first.ended_at.timestamp())
    assert (sample("runs_total", outcome="equal") or 0) == before  # it was counted when it was new


def test_what_expires_is_not_missing(config: Config) -> None:
    expired = outcome(Differences(rows=7, missing=[b"k"]))._replace(expires=True)
    keep_outcome(config, expired, "test")
    with psycopg.connect(config.postgres.dsn) as connection:
        assert verify_runs.last(connection)[0].passed_at is not None


def test_a_step_says_how_long_it_takes() -> None:
    assert Step("redis", TABLE, 250, 1000, 5.0).line == f"comparing redis with {TABLE}: 250 of 1000 rows, 15 s left"
    assert Step("redis", TABLE, 250, None, 5.0).line == f"comparing redis with {TABLE}: 250 rows"
    assert Step("redis", TABLE, 1100, 1000, 5.0).line.endswith("1100 of 1100 rows, 0 s left")
