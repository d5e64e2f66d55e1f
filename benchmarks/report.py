"""Results as tables: for a terminal, and as Markdown for docs/benchmarks.md."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Check, Comparison, Grid, Latency, Result


@dataclass
class Sheet:
    """A table; a cell is a text, or a text and whether that missed its target."""

    title: str
    columns: Sequence[str]
    rows: list[tuple[str | tuple[str, bool], ...]] = field(default_factory=list)


def sheets(found: Sequence[Result], *, quick: bool) -> list[Sheet]:
    """What there is to show, in order."""
    columns = ("what", "ours", "against", "first", "again", "unit", "ratio", "target", "noise")
    bounds = Sheet("Against bounds and peers", columns)
    latencies = Sheet("Latency from commit", ("what", "rows/s", "p50 ms", "p99 ms", "worst ms", "samples"))
    checks = Sheet("Targets", ("what", "value", "target"))
    details = Sheet("Details", ("what", "measure", "value"))
    for result in found:
        if isinstance(result, Latency):
            numbers = [f"{value:.1f}" for value in (result.p50, result.p99, result.worst)]
            latencies.rows.append((result.name, f"{result.rate:,}", *numbers, f"{result.samples:,}"))
        elif isinstance(result, Check):
            value = f"{result.value:,.2f} {result.unit}", result.missed(quick=quick)
            checks.rows.append((result.name, value, f"{'≤' if result.at_most else '≥'} {result.target:.3g}"))
        elif isinstance(result, Comparison):
            bounds.rows.append(_compared(result, quick=quick))
            for name, amount in result.details.items():
                details.rows.append((result.name, name.replace("_", " "), f"{amount:,.2f}"))
    grids = [_grid(result) for result in found if isinstance(result, Grid)]
    return [sheet for sheet in (bounds, latencies, *grids, checks, details) if sheet.rows]


def _compared(result: Comparison, *, quick: bool) -> tuple[str | tuple[str, bool], ...]:
    first, again = (f"{value:,.0f}" for value in result.bounds)
    aim = "" if result.aim is None else f"≥ {result.aim:.3g}"
    ratio = f"{result.ratio:.2f}", result.missed(quick=quick)
    return (
        result.name, f"{result.ours:,.0f}", result.bound, first, again, result.unit,
        ratio[0] if result.aim is None else ratio, aim, f"±{result.noise:.0%}",
    )  # fmt: skip


def _grid(grid: Grid) -> Sheet:
    rows = [tuple(value if isinstance(value, str) else f"{value:,}" for value in row) for row in grid.rows]
    return Sheet(grid.title, grid.columns, [*rows])


def show(console: Console, found: Sequence[Result], *, quick: bool) -> None:
    """For a person: what missed its target is red."""
    for sheet in sheets(found, quick=quick):
        table = Table(*sheet.columns, title=sheet.title)
        for row in sheet.rows:
            table.add_row(*(cell if isinstance(cell, str) else _coloured(*cell) for cell in row))
        console.print(table)


def _coloured(text: str, missed: bool) -> str:
    colour = "red" if missed else "green"
    return f"[{colour}]{text}[/{colour}]"


def markdown(found: Sequence[Result], *, quick: bool) -> str:
    """For the docs: what missed its target is bold and says so."""
    lines: list[str] = []
    for sheet in sheets(found, quick=quick):
        lines += [f"### {sheet.title}", "", _line(sheet.columns), _line(["---"] * len(sheet.columns))]
        for row in sheet.rows:
            lines.append(_line([cell if isinstance(cell, str) else _marked(*cell) for cell in row]))
        lines.append("")
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _marked(text: str, missed: bool) -> str:
    return f"**{text}, missed**" if missed else text


def document(about: dict[str, Any], flags: dict[str, Any], found: Sequence[Result]) -> str:
    """The JSON: machine, flags and every figure."""
    kinds = {"comparisons": Comparison, "latencies": Latency, "checks": Check, "grids": Grid}
    content: dict[str, Any] = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": about,
        "flags": flags,
    }
    for name, kind in kinds.items():
        content[name] = [result.record() for result in found if isinstance(result, kind)]
    return json.dumps(content, indent=1) + "\n"
