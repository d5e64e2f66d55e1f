"""What a benchmark yields, and how it is judged: ours against a bare bound of the same machine in the same run.

The bound is measured twice, before and after ours; how far these two lie apart is the noise floor of the ratio.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

LIBRARIES = ("psycopg", "aiokafka", "faiss-cpu", "redis", "hiredis", "msgspec", "numpy", "uvloop")
QUICK_TOLERANCE = 0.6  # few rows, so start-up and noise weigh: a smoke run only finds what is far below its aim


class Sample(NamedTuple):
    """How many rows were there at a time (monotonic seconds)."""

    seconds: float
    rows: int


def rate(samples: Sequence[Sample]) -> float:
    """Rows a second between the first and the last observation: start-up does not count, nor what was there first."""
    first, last = samples[0], samples[-1]
    return (last.rows - first.rows) / (last.seconds - first.seconds)


@dataclass(frozen=True)
class Comparison:
    """`ours` and both runs of the bound in `unit`; `aim` is the ratio wanted, None where none is set."""

    name: str
    bound: str
    unit: str
    ours: float
    bounds: tuple[float, float]
    aim: float | None = None
    details: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Ours over the mean of the bound."""
        return self.ours / statistics.mean(self.bounds)

    @property
    def noise(self) -> float:
        """How far the two runs of the bound lie apart, as a share of their mean."""
        return abs(self.bounds[0] - self.bounds[1]) / statistics.mean(self.bounds)

    def missed(self, *, quick: bool) -> bool:
        """True when the ratio is below the aim by more than chance explains."""
        tolerance = QUICK_TOLERANCE if quick else min(self.noise, QUICK_TOLERANCE)
        return self.aim is not None and self.ratio < self.aim * (1 - tolerance)

    def record(self) -> dict[str, Any]:
        """For the JSON."""
        return asdict(self) | {"ratio": self.ratio, "noise": self.noise}


@dataclass(frozen=True)
class Check:
    """A figure that has a target: `value` is to be at most (or, else, at least) `target`, both in `unit`."""

    name: str
    value: float
    target: float
    unit: str = "×"
    at_most: bool = True

    def missed(self, *, quick: bool) -> bool:
        """True on the wrong side of the target; few rows get tolerance."""
        value = self.value
        if quick:
            value *= 1 - QUICK_TOLERANCE if self.at_most else 1 / (1 - QUICK_TOLERANCE)
        return value > self.target if self.at_most else value < self.target

    def record(self) -> dict[str, Any]:
        """For the JSON."""
        return finite(asdict(self))


@dataclass(frozen=True)
class Grid:
    """Figures without a target, as a table."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]

    def record(self) -> dict[str, Any]:
        """For the JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Latency:
    """Milliseconds from commit until a row was seen somewhere, at a rate of rows a second."""

    name: str
    rate: int
    samples: int
    p50: float
    p99: float
    worst: float

    def record(self) -> dict[str, Any]:
        """For the JSON."""
        return finite(asdict(self))


def finite(record: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity: what was never seen has no number."""
    return {key: None if value == math.inf else value for key, value in record.items()}


Result = Comparison | Check | Grid | Latency


def latency(name: str, rate: int, seconds: Sequence[float]) -> Latency:
    """Percentiles by nearest rank."""
    ordered = sorted(1000 * value for value in seconds)
    p50, p99 = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99))
    return Latency(name, rate, len(ordered), p50, p99, ordered[-1])


def machine(servers: dict[str, str]) -> dict[str, Any]:
    """What the figures depend on; `servers` names the programs that served."""
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "servers": servers,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
