"""A transaction's way through the processes: lines of the log that name it, and spans where traces are on.

A transaction is named by its positions' first 24 digits, epoch and commit LSN, which all of them share. With --verbose
each process names every transaction it has written or applied, so that `grep <those digits>` over all logs tells where
it has come, and when; dead letters and refusals carry whole positions, which begin so. Costs nothing when both are off.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from cdc import log
from cdc.errors import ConfigError

if TYPE_CHECKING:
    from cdc.config import Config
    from cdc.tracing import Spans

LOG = log.get(__name__)
T = TypeVar("T")

DIGITS = 24  # of a position's 32: epoch and commit LSN, without the ordinal
A_LINE = 100  # transactions a line


class Transaction(NamedTuple):
    """One source transaction within a chunk. `commit_us`: since the Unix epoch; `first`: its beginning is in there."""

    epoch: int
    commit_lsn: int
    xid: int
    commit_us: int
    first: bool

    @property
    def name(self) -> bytes:
        """24 hex digits."""
        return b"%08x%016x" % (self.epoch, self.commit_lsn)


class Trail:
    """Of one process: `reader`, or the name of its store. Raises ConfigError when traces are on and cannot be."""

    def __init__(self, config: Config, process: str) -> None:
        self._process = process
        self._spans = _spans(config, process)

    @property
    def told(self) -> bool:
        """Whether anybody wants to know."""
        return self._spans is not None or log.verbose()

    def now(self) -> int:
        """ns since the Unix epoch."""
        return time.time_ns()

    def written(self, transactions: Sequence[Transaction], taken: int, count: int) -> None:
        """The reader's chunk of `count` records is durable; it was begun at `taken` (ns)."""
        ended = self.now()
        for some in _lines(transactions):
            LOG.debug(
                "written", transactions=[each.name.decode() for each in some], xids=[each.xid for each in some],
                count=count,
            )  # fmt: skip
        for each in transactions if self._spans is not None else ():
            assert self._spans is not None
            self._spans.transaction(each.name, each.xid, each.commit_us * 1000, taken, ended, first=each.first)

    def applied(self, table: str, positions: Sequence[tuple[bytes, int, int]], begun: int) -> None:
        """A store's batch is applied, begun at `begun` (ns); `positions`: position, partition, offset of each."""
        ended = self.now()
        offsets = _ranges(positions)
        names = sorted({position[:DIGITS] for position, _partition, _offset in positions})
        for some in _lines(names):
            LOG.debug(
                "applied", store=self._process, table=table, transactions=[name.decode() for name in some],
                offsets=offsets, count=len(positions),
            )  # fmt: skip
        if self._spans is not None:
            for name in names:
                self._spans.applied(name, begun, ended, {"cdc.table": table}, self._process)


def _lines(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + A_LINE] for start in range(0, len(items), A_LINE))


def _ranges(positions: Sequence[tuple[bytes, int, int]]) -> dict[str, str]:
    """Partition → first and last offset."""
    found: dict[int, tuple[int, int]] = {}
    for _position, partition, offset in positions:
        first, last = found.get(partition, (offset, offset))
        found[partition] = min(first, offset), max(last, offset)
    return {str(partition): f"{first}-{last}" for partition, (first, last) in sorted(found.items())}


def _spans(config: Config, process: str) -> Spans | None:
    tracing = config.tracing
    if tracing.endpoint is None:
        return None
    try:
        from cdc.tracing import spans
    except ImportError as error:
        raise ConfigError(
            f"[tracing] endpoint is set, and {error.name} is not installed", hint="pip install 'memory-cdc[trace]'"
        ) from error
    return spans(tracing.endpoint, tracing.sample, config.source_name, process)
