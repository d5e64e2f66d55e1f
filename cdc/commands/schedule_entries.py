"""Schedules as `cdc status`, `cdc top` and GET /schedules show them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cdc.commands.gateway_control import keep
from cdc.config import Config
from cdc.control import schedules
from cdc.control.schedules import Standing
from consumers.gateway.schedules import Entry

LATE_PERIODS = 2  # without a success for so many somebody is paged, as in docker/prometheus/rules.yml


def due(config: Config, standing: Standing) -> datetime:
    """When it runs next; of one that another gateway's configuration has, a period after the last success."""
    schedule = config.schedule.get(standing.name)
    if schedule is None:
        return standing.since + timedelta(seconds=standing.period_seconds)
    return schedule.due(standing.since, standing.last_run)


def entries(config: Config) -> list[Entry]:
    """Every schedule, by name; it blocks. Raises ConnectError, StoreError without the control schema."""
    return [_entry(standing, due(config, standing)) for standing in keep(config, schedules.standings)]


def _entry(standing: Standing, at: datetime) -> Entry:
    age = (datetime.now(UTC) - standing.since).total_seconds()
    return Entry(
        name=standing.name, kind=standing.kind, period_seconds=standing.period_seconds, last_run=standing.last_run,
        last_success=standing.last_success, age_seconds=max(0.0, age), next_run=None if standing.job else at,
        overdue=age > LATE_PERIODS * standing.period_seconds, error=standing.last_error, job=standing.job,
        last_job=standing.last_job,
    )  # fmt: skip
