"""The garbage collector in processes whose work is rows: they come and go by reference counts."""

from __future__ import annotations

import gc

YOUNG = 50_000  # objects made before it looks again; a chunk of the reader or a poll of a consumer has about that many
MIDDLE, OLD = 20, 50  # of the younger generation's rounds


def collect_rarely() -> None:
    """For a process at its start: what is imported stays, and looking at live rows often is work for nothing."""
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)
