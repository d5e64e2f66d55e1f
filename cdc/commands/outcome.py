"""What a verify found, as scripts and metrics have it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from consumers.verify import Differences

KINDS = ("missing", "extra", "stale", "different", "unsettled")


class Outcome(NamedTuple):
    """One table in one store. `expires`: its records have a time to live, so that missing ones are no difference;
    `sampled`: only some rows were looked at."""

    store: str
    table: str
    found: Differences
    expires: bool
    seconds: float
    sampled: bool = False

    @property
    def equal(self) -> bool:
        """Nothing differs that should not."""
        found = self.found
        return not (found.extra or found.stale or found.different or (found.missing and not self.expires))

    @property
    def counts(self) -> dict[str, int]:
        """Keys by kind."""
        return {kind: len(keys) for kind, keys in kinds_of(self.found).items()}

    def document(self) -> dict[str, Any]:
        """For scripts: with every key."""
        kinds = {kind: [key.decode() for key in keys] for kind, keys in kinds_of(self.found).items()}
        return {**self.summary(), **kinds}

    def summary(self) -> dict[str, Any]:
        """For scripts: without keys."""
        return {
            "store": self.store, "table": self.table, "equal": self.equal, "rows": self.found.rows,
            "sampled": self.sampled, "seconds": round(self.seconds, 3), "counts": self.counts,
        }  # fmt: skip


def kinds_of(found: Differences) -> dict[str, list[bytes]]:
    """Keys by kind."""
    return {kind: getattr(found, kind) for kind in KINDS}


def document(before: Sequence[Outcome], after: Sequence[Outcome] | None) -> dict[str, Any]:
    """A whole verify; `after` what a repair led to."""
    last = before if after is None else after
    told: dict[str, Any] = {"equal": all(outcome.equal for outcome in last)}
    if after is not None:
        told["repaired"] = [outcome.summary() for outcome in before if not outcome.equal]
    return {**told, "comparisons": [outcome.document() for outcome in last]}


def measure(outcome: Outcome) -> None:
    """Sets the metrics of a process that lives on: `on_outcome` of `compare_all` takes this."""
    from cdc import metrics

    labels = (outcome.store, outcome.table)
    metrics.VERIFY_RUNS.labels(*labels, "equal" if outcome.equal else "different").inc()
    metrics.VERIFY_LAST.labels(*labels).set(time.time())
    metrics.VERIFY_SECONDS.labels(*labels).set(outcome.seconds)
    metrics.VERIFY_ROWS.labels(*labels).set(outcome.found.rows)
    for kind, count in outcome.counts.items():
        metrics.VERIFY_DIFFERENCES.labels(*labels, kind).set(count)
