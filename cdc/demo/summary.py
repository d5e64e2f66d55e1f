"""What a run found out. Every number was asked of a store or measured against one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds, of `samples` measurements; p50 and p99 are values that were measured (nearest rank)."""

    p50: float
    p99: float
    samples: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        """Raises IndexError without any measurement."""
        ordered = sorted(seconds)
        ranks = (max(0, -(-len(ordered) * percent // 100) - 1) for percent in (50, 99))
        p50, p99 = (round(1000 * ordered[rank], 1) for rank in ranks)
        return cls(p50, p99, len(ordered))


@dataclass
class Summary:
    """Filled step by step; `seconds` are wall-clock."""

    seed: int
    python: str
    servers: Mapping[str, str] = field(default_factory=dict)
    start_seconds: float = 0.0
    texts: int = 0
    bulk_seconds: float = 0.0  # from the first INSERT until every store held every row
    found_after_ms: float = 0.0  # from the commit of a sentence to the search that found it
    applied_ms: dict[str, Times] = field(default_factory=dict)  # commit → readable in the store
    search_ms: Times | None = None
    killed: dict[str, Any] = field(default_factory=dict)
    rebuild: dict[str, Any] = field(default_factory=dict)
    rows: Mapping[str, int | None] = field(default_factory=dict)
    differences: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None  # why a step failed

    @property
    def equal(self) -> bool:
        """Both stores were compared, agree with PostgreSQL in every key, and count the same."""
        counts = {self.rows.get(place) for place in ("postgresql", "redis", "faiss")}
        compared = {"redis", "faiss"} <= self.differences.keys()
        return (
            self.error is None
            and compared
            and not any(self.differences.values())
            and len(counts) == 1
            and None not in counts
        )

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {"equal": self.equal, **asdict(self)}
