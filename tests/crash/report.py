"""What a run has found: a table a failpoint, and the same as JSON."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.crash.trial import Outcome


@dataclass
class Row:
    """One case's trials."""

    trials: int = 0
    hits: int = 0
    catch_ups: list[float] = field(default_factory=list)


@dataclass
class Report:
    """Grows with each clean trial. `failure` is what ended the run."""

    seed: int
    rows: dict[str, Row] = field(default_factory=lambda: defaultdict(Row))
    trials: int = 0
    seconds: float = 0.0
    failure: str = ""
    counted: dict[str, int] = field(default_factory=dict)  # what was looked at
    peaks: Mapping[str, int] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        """A clean trial."""
        self.trials += 1
        for case, hit in zip(outcome.cases, outcome.hits, strict=True):
            row = self.rows[case.label]
            row.trials += 1
            row.hits += hit
            row.catch_ups.append(outcome.catch_up)

    def document(self) -> dict[str, Any]:
        """For a file."""
        return {
            "seed": self.seed,
            "clean_trials": self.trials,
            "failure": self.failure or None,
            "failure_rate_below": None if self.failure or not self.trials else round(min(1.0, 3 / self.trials), 4),
            "seconds": round(self.seconds, 1),
            "catch_up_seconds": _quantiles([s for row in self.rows.values() for s in row.catch_ups]),
            "peak_bytes": dict(self.peaks),
            "counted": self.counted,
            "cases": {
                label: {"trials": row.trials, "hits": row.hits, "catch_up_seconds": _quantiles(row.catch_ups)}
                for label, row in sorted(self.rows.items())
            },
        }

    def show(self, console: Console) -> None:
        """For a person."""
        table = Table("where it is killed", "trials", "hits", "catch-up p50", "p99")
        for label, row in sorted(self.rows.items()):
            at = _quantiles(row.catch_ups)
            table.add_row(label, str(row.trials), str(row.hits), f"{at['p50']:.1f} s", f"{at['p99']:.1f} s")
        console.print(table)
        console.print(f"{self.trials} clean trials in {self.seconds:.0f} s; looked at: {self.counted}")
        console.print("peak memory: " + ", ".join(f"{name} {peak >> 20} MiB" for name, peak in self.peaks.items()))
        if self.failure:
            console.print(f"FAILED: {self.failure}")
        elif self.trials:
            bound = min(100.0, 300 / self.trials)
            console.print(f"no failure in {self.trials}: the rate is below {bound:.1f} % at 95 % (rule of three)")


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p99 and the largest, nearest rank; zeros for none."""
    ordered = sorted(values) or [0.0]
    rank = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[math.ceil(q * len(ordered)) - 1], 2) for name, q in rank.items()}
