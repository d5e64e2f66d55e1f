"""What schedules ask for, checked before anything runs: their arguments are those of the jobs they begin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from cdc.commands.gateway_signals import ASKED
from cdc.commands.gateway_work import WORKS
from cdc.commands.schedule_entries import entries
from cdc.config import Config
from cdc.doctor.finding import Finding, error, ok, warning
from cdc.errors import CdcError, ConfigError
from cdc.schedules import Command, Schedule
from cdc.section import Section
from consumers.gateway.schedules import Entry

AREA = "schedules"


class Prune(Section):
    """It takes no arguments."""


ARGUMENTS: Mapping[str, type[BaseModel]] = {**ASKED, "prune": Prune, "command": Command}


def arguments_of(name: str, schedule: Schedule) -> dict[str, Any]:
    """As its jobs take them. Raises ConfigError."""
    if schedule.kind not in WORKS or schedule.kind not in ARGUMENTS:
        raise ConfigError(f"[schedule.{name}] kind: the gateway does no {schedule.kind}", hint="choose another kind")
    try:
        return ARGUMENTS[schedule.kind].model_validate(schedule.arguments).model_dump(mode="json", exclude_none=True)
    except ValidationError as failed:
        fault = failed.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, ("arguments", *fault["loc"])))
        raise ConfigError(
            f"[schedule.{name}] {field}: {fault['msg']}", hint=f"see POST /admin/{schedule.kind} in the gateway's /docs"
        ) from None


def check_schedules(config: Config) -> Iterator[Finding]:
    """For `cdc doctor`: what is configured can be done, and is done. Raises nothing."""
    for name, schedule in config.schedule.items():
        try:
            arguments_of(name, schedule)
        except ConfigError as failed:
            yield error(AREA, failed.message, failed.hint)
    try:
        found = entries(config)
    except CdcError:
        return  # another check has said so
    for entry in found:
        yield _finding(entry)
    if not found:
        yield warning(AREA, "no gateway has ever run schedules: nothing is verified by itself", "run `cdc gateway`")


def _finding(entry: Entry) -> Finding:
    days = entry.age_seconds / 86400
    if entry.overdue:
        text = f"{entry.name} has not succeeded for {days:.1f} days: {entry.error or 'it was not run'}"
        return warning(AREA, text, "docs/runbooks.md#schedule-missed")
    state = f"succeeded {days:.1f} days ago" if entry.last_success else "has not been due yet"
    return ok(AREA, f"{entry.name} {state}")
