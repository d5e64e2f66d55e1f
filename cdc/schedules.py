"""`[schedule.<name>]`: what the gateway does again and again, and when the next run is due.

When it is due follows from the last success alone, which PostgreSQL remembers: a gateway that was down for a week does
what is overdue once, at its start.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from cdc.section import Section

if TYPE_CHECKING:
    from apscheduler.triggers.cron import CronTrigger

Kind = Literal["verify", "snapshot", "backfill", "repair", "rebuild", "prune", "command"]
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
MOMENT = timedelta(microseconds=1)
DAY = timedelta(days=1)
DAYS = 370  # with a run in it: beyond a year's pattern
LEAST_RETRY = timedelta(minutes=1)
RETRIES = 24  # a day's run that failed is tried again each hour
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "verify": {"kind": "verify", "every": "1d"},
    "prune": {"kind": "prune", "every": "1d"},
}


def duration(text: object) -> object:
    """`90s`, `10m`, `6h`, `1d`, `2w` as a timedelta; ISO 8601, as a dumped config has it, is left to pydantic. Raises
    ValueError."""
    if isinstance(text, timedelta) or str(text).startswith("P"):
        return text
    found = re.fullmatch(r"([1-9][0-9]{0,5})([smhdw])", str(text))
    if found is None:
        raise ValueError("has to be a number with s, m, h, d or w, as in 6h")
    return timedelta(**{UNITS[found[2]]: int(found[1])})


Duration = Annotated[timedelta, BeforeValidator(duration)]


class Command(Section):
    """The arguments of kind `command`: a program with its own arguments, no shell, ended after so many seconds."""

    argv: list[str] = Field(min_length=1)
    seconds: float = Field(3600.0, gt=0)


class Schedule(Section):
    """`every` (since the last success) or `cron` (five fields, UTC); `arguments` are those of the job of this kind."""

    kind: Kind
    every: Duration | None = None
    cron: str | None = None
    arguments: dict[str, Any] = Field({})
    enabled: bool = True

    @model_validator(mode="after")
    def _sound(self) -> Schedule:
        if (self.every is None) == (self.cron is None):
            raise ValueError('needs either every, as in "1d", or cron, as in "0 3 * * *"')
        if self.cron is not None and self._trigger().get_next_fire_time(None, datetime.now(UTC)) is None:
            raise ValueError(f"cron {self.cron!r} never comes")
        if self.kind == "command":
            Command.model_validate(self.arguments)
        return self

    @property
    def period(self) -> timedelta:
        """The longest time between two runs."""
        return self.every if self.every is not None else max(self._gaps())

    @property
    def retry(self) -> timedelta:
        """How long after a run that failed it is tried again."""
        return min(self.period, max(LEAST_RETRY, self.period / RETRIES))

    def due(self, since: datetime, tried: datetime | None) -> datetime:
        """When to run next. `since`: the last success, or when it was first asked for; `tried`: the last run."""
        first = since + self.every if self.every is not None else self._after(since)
        return first if tried is None or tried <= since else max(first, tried + self.retry)

    def _after(self, moment: datetime) -> datetime:
        found: datetime | None = self._trigger().get_next_fire_time(None, moment + MOMENT)
        return found or datetime.max.replace(tzinfo=UTC)

    def _gaps(self) -> Iterator[timedelta]:
        """Between runs of one day, which are the same each day, and between the days that have any."""
        days = list(islice(self._days(), DAYS))
        runs = list(self._runs(days[0]))
        yield from (later - earlier for earlier, later in pairwise(runs))
        night = runs[0] - runs[-1]
        yield from (later - earlier + night for earlier, later in pairwise(days))

    def _days(self) -> Iterator[datetime]:
        """The midnights before the first run of each coming day that has one."""
        run = self._after(datetime.now(UTC))
        while run.year < datetime.max.year:
            yield (day := run.replace(hour=0, minute=0, second=0, microsecond=0))
            run = self._after(day + DAY - MOMENT)

    def _runs(self, day: datetime) -> Iterator[datetime]:
        run = self._after(day - MOMENT)
        while run < day + DAY:
            yield run
            run = self._after(run)

    def _trigger(self) -> CronTrigger:
        """Raises ValueError."""
        from apscheduler.triggers.cron import CronTrigger

        if re.search(r"[0-9]", (str(self.cron).split() or [""])[-1].partition("/")[0]):
            raise ValueError("cron: name the days of the week (mon, sun), their numbers mean different days elsewhere")
        try:
            return CronTrigger.from_crontab(self.cron, timezone=UTC)
        except ValueError as error:
            raise ValueError(f"cron {self.cron!r}: {error}") from None


def with_defaults(given: object) -> object:
    """Verify and prune daily, unless they are told otherwise; `enabled = false` turns one off."""
    if not isinstance(given, Mapping):
        return given
    merged: dict[str, Any] = {name: _merged(default, given.get(name, {})) for name, default in DEFAULTS.items()}
    return {**given, **merged}


def _merged(default: Mapping[str, Any], given: object) -> object:
    if not isinstance(given, Mapping):
        return given
    kept = {key: value for key, value in default.items() if not (key == "every" and "cron" in given)}
    return {**kept, **given}
