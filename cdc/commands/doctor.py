"""`cdc doctor`: what would stop the pipeline, or hurt it later, and how to mend it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from cdc.commands.asking import ask
from cdc.commands.configuration import configuration

if TYPE_CHECKING:
    from cdc.config import Config
    from cdc.doctor import Finding

COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


def doctor(
    context: typer.Context,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings make exit code 1 too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Prints JSON.")] = False,
) -> None:
    """Checks every precondition on all servers; exit code 1 when something has to be mended."""
    config = configuration(context)
    findings = ask(config, _examine(config))
    bad = [f for f in findings if f.level == "error" or (strict and f.level == "warning")]
    if as_json:
        typer.echo(json.dumps({"ok": not bad, "findings": [f._asdict() for f in findings]}, ensure_ascii=False))
    else:
        _show(findings)
    raise typer.Exit(1 if bad else 0)


async def _examine(config: Config) -> list[Finding]:
    from cdc.commands.schedule_checks import check_schedules
    from cdc.commands.store_checks import check_stores
    from cdc.doctor import examine

    found = [finding async for finding in examine(config)]
    return [*found, *check_stores(config), *check_schedules(config)]


def _show(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_lines=False)
    for column in ("", "", "finding", "remedy"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        level = f"[{COLOURS[finding.level]}]{finding.level}[/]"
        table.add_row(finding.area, level, escape(finding.text), escape(finding.remedy))
    console = Console(highlight=False)
    console.print(table)
    errors = sum(finding.level == "error" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    console.print(f"{errors} to mend, {warnings} to think about" if errors or warnings else "all is well")
