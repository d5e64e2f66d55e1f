"""Searches before changes: between two slices of work, whoever changes the index lets the searches that run finish.

The gate keeps a search and a change from the same vectors; this keeps them from the same two cores, the memory's
bandwidth and the interpreter. While a backlog is applied, threads want more than two cores, and a search takes several
times as long; after each slice it now has them for itself. A stream of small batches never waits.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE_SECONDS = 0.02  # so that searches without end slow changes down, and do not stop them
SWITCH_SECONDS = 0.0005  # for `sys.setswitchinterval`: Python's 5 ms are a search's whole time, at each step it takes


class Precedence:
    """For threads; one for an index."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._searches = 0

    @contextmanager
    def searching(self) -> Iterator[None]:
        """Around a search."""
        with self._changed:
            self._searches += 1
        try:
            yield
        finally:
            with self._changed:
                self._searches -= 1
                if not self._searches:
                    self._changed.notify_all()

    def give_way(self, seconds: float = PATIENCE_SECONDS) -> bool:
        """Returns once no search runs, or after `seconds`: whether none does."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._searches, seconds)
