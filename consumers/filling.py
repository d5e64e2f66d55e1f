"""A store that was found empty, until it has what the topics had then: its counts say nothing before."""

from __future__ import annotations

from collections.abc import Mapping

from cdc import log
from consumers.store import Offsets, Partition

LOG = log.get(__name__)


class Filling:
    """Of one consumer. It needs no asking: whatever a store does not hold is replayed."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._targets: dict[Partition, int] = {}

    def begin(self, start: Offsets, ends: Offsets) -> None:
        """The partitions have been placed at `start`; their logs end at `ends` now."""
        empty = {place: end for place, end in ends.items() if end and not start.get(place)}
        if empty and not self._targets:
            LOG.info("the store has nothing of some topics yet, and is filled from them", store=self._store,
                     partitions=len(empty), count=sum(empty.values()))  # fmt: skip
        self._targets = {**self._targets, **empty}

    def under_way(self, reached: Mapping[Partition, int]) -> bool:
        """Whether something of it is still to come, as far as the partitions are ours."""
        if reached and self._targets and all(reached.get(at, end) >= end for at, end in self._targets.items()):
            LOG.info("the store is filled", store=self._store)
            self._targets = {}
        return bool(self._targets)
