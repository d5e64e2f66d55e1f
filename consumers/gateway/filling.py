"""Whether a store lacks what the topics have had for long: then its counts are no truth, and a list of it not complete.

A new or a flushed store is empty for a moment, and not because there was nothing to hold.
"""

from __future__ import annotations

from collections.abc import Collection

from consumers.gateway.timeline import Timeline
from consumers.store import Offsets


def filled(timeline: Timeline, offsets: Offsets, tables: Collection[str], objective_seconds: float) -> float | None:
    """The share of the tables' logs that a store with these offsets has applied; None when it has nothing to catch up
    with but what came within the objective, or when nobody can tell.

    Held against the newest heartbeat and not the clock: an idle or a stopped source makes no store incomplete."""
    newest = timeline.newest
    if newest is None:
        return None
    ends = {place: newest.ends[place[0]][place[1]] for place in timeline.partitions(tables)}
    done = sum(min(offsets.get(place, 0), end) for place, end in ends.items())
    total = sum(ends.values())
    if done == total:
        return None
    until = timeline.place(offsets, tables).fresh_until
    late = until is None or newest.ts_us / 1e6 - until > objective_seconds
    return done / total if late or not done else None
