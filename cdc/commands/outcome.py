"""What a verify found, as scripts and metrics have it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from uuid import UUID

    from cdc.config import Config
    from cdc.control.verify_runs import VerifyRun
    from consumers.verify import Differences

KINDS = ("missing", "extra", "stale", "different", "unsettled")


class Outcome(NamedTuple):
    """One table in one store. `expires`: its records have a time to live, so that missing ones are no difference;
    `share`: of the rows that were looked at; `position` (wire form): of the moment compared; `error`: why it came to no
    end; `repaired`: keys sent again because of the comparison before this one."""

    store: str
    table: str
    found: Differences
    expires: bool
    seconds: float
    share: float = 1.0
    position: bytes | None = None
    error: str | None = None
    repaired: int = 0

    @property
    def equal(self) -> bool:
        """It came to its end, and nothing differs that should not."""
        found = self.found
        return not (self.error or found.extra or found.stale or found.different or (found.missing and not self.expires))

    @property
    def counts(self) -> dict[str, int]:
        """Keys by kind."""
        return {kind: len(keys) for kind, keys in kinds_of(self.found).items()}

    def document(self) -> dict[str, Any]:
        """For scripts: with every key."""
        kinds = {kind: [key.decode(errors="replace") for key in keys] for kind, keys in kinds_of(self.found).items()}
        return {**self.summary(), **kinds}

    def summary(self) -> dict[str, Any]:
        """For scripts: without keys."""
        return {
            "store": self.store, "table": self.table, "equal": self.equal, "rows": self.found.rows,
            "sampled": self.share < 1, "seconds": round(self.seconds, 3), "counts": self.counts,
            "faults": self.found.faults, "position": self.position and self.position.decode(),
        }  # fmt: skip

    @property
    def run(self) -> dict[str, Any]:
        """As `cdc.verify_runs` keeps it; what expired is not missing."""
        ended, counts = datetime.now(UTC), self.counts
        return {
            **counts, "missing": 0 if self.expires else counts["missing"], "store": self.store, "table": self.table,
            "started_at": ended - timedelta(seconds=self.seconds), "ended_at": ended, "rows": self.found.rows,
            "position": self.position and self.position.decode(), "share": self.share, "repaired": self.repaired,
            "error": self.error or "; ".join(self.found.faults) or None,
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


def keep_outcome(config: Config, outcome: Outcome, run_by: str, job: UUID | None = None) -> None:
    """Into `cdc.verify_runs`, of which the gateway makes metrics. Raises ConnectError; StoreError without it."""
    from cdc.commands.gateway_control import keep
    from cdc.control.verify_runs import VerifyRun, record_verify

    run: VerifyRun = VerifyRun(**outcome.run, run_by=run_by, job_id=job)
    keep(config, lambda connection: record_verify(connection, run))
