"""What `cdc status` and `cdc top` show of operation: schedules, and what the gateway makes of counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from cdc.commands.exposition import Samples
    from cdc.commands.observation import Observation

SECONDS = {"d": 86400, "h": 3600, "min": 60}


def schedules(seen: Observation) -> list[dict[str, Any]] | None:
    """Each as GET /schedules tells it; None when PostgreSQL cannot tell."""
    found = seen.schedules.value
    return None if found is None else [entry.model_dump(mode="json") for entry in found]


def judgement(samples: Samples) -> dict[str, Any]:
    """`degraded`, and per store and table how many records its count is beyond what lag explains; None while the
    gateway has not counted yet."""
    from cdc.commands.exposition import total

    degraded = total(samples, "cdc_gateway_degraded")
    counted = total(samples, "cdc_gateway_counted_timestamp_seconds")
    beyond = {
        f"{dict(labels)['store']} {dict(labels)['table']}": int(value)
        for (name, labels), value in samples.items()
        if name == "cdc_gateway_unexplained_rows" and value
    }
    return {"degraded": bool(degraded) if counted else None, "unexplained": beyond}


def words(process: dict[str, Any]) -> str:
    """The same for a person."""
    if not process.get("degraded"):
        return ""
    beyond = ", ".join(f"{what} differs by {number:,}" for what, number in process["unexplained"].items())
    return f"degraded: {beyond or 'GET /stats says why'}"


def table(found: list[dict[str, Any]] | None, reason: str) -> Table:
    """Schedules, one a line."""
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title="schedules")
    for column in ("", "state", "every", "last success", "last error"):
        shown.add_column(column)
    if found is None:
        shown.add_row("", f"[red]unknown[/]: {escape(reason)}")
    for entry in found or []:
        age = f"{span(entry['age_seconds'])} ago" if entry["last_success"] else "never"
        shown.add_row(entry["name"], _state(entry), span(entry["period_seconds"]), age, escape(entry["error"] or ""))
    return shown


def _state(entry: dict[str, Any]) -> str:
    if entry["job"]:
        return "[green]runs[/]"
    return "[red]overdue[/]" if entry["overdue"] else "[yellow]failed[/]" if entry["error"] else "[green]waits[/]"


def span(seconds: float) -> str:
    """In its largest unit."""
    for unit, size in SECONDS.items():
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"
