"""Who may look at the index and who may change it: many readers or one writer, and neither starves.

A waiting writer closes the gate to new readers, so that a busy search load cannot hold changes back; when it leaves,
every reader that queued meanwhile goes in before the next writer (phase-fair: Brandenburg and Anderson,
"Reader-Writer Synchronization for Shared-Memory Multiprocessor Real-Time Systems", 2009). Both sides thus wait for
one turn of the other at most. Keeping a turn short (5 ms) is the caller's duty.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """A reader-writer lock for threads; not re-entrant."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._reading = 0
        self._queued = 0  # readers that wait for the present writer
        self._writers = 0  # waiting or writing
        self._writing = False
        self._phase = 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Shared with other readers."""
        with self._changed:
            if self._writers:
                phase = self._phase
                self._queued += 1
                self._changed.wait_for(lambda: self._phase != phase)
            else:
                self._reading += 1
        try:
            yield
        finally:
            with self._changed:
                self._reading -= 1
                if not self._reading:
                    self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Alone."""
        with self._changed:
            self._writers += 1
            self._changed.wait_for(lambda: not self._reading and not self._writing)
            self._writing = True
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._writers -= 1
                self._reading, self._queued = self._reading + self._queued, 0  # the queue goes in, counted at once
                self._phase += 1
                self._changed.notify_all()
