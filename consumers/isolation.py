"""Finding the one bad record of a batch, for stores that name it only by an error."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from cdc.errors import RecordError
from consumers.batches import halves
from consumers.store import Applied, Batch, Rejected


async def apply_isolating(apply: Callable[[Batch], Awaitable[Applied]], batch: Batch) -> Applied:
    """Applies a batch; on a RecordError ever smaller parts of it, until the bad records stand alone, as rejected.

    Parts that were applied before the error come again, which changes nothing.
    """
    try:
        return await apply(batch)
    except RecordError as error:
        if len(batch.records) <= 1:
            return Applied(rejected=[Rejected(record, error.reason, error.message) for record in batch.records])
    first, second = [await apply_isolating(apply, half) for half in halves(batch)]
    return Applied(
        first.upserts + second.upserts,
        first.deletes + second.deletes,
        first.stale + second.stale,
        [*first.rejected, *second.rejected],
    )


def without(batch: Batch, rejected: Sequence[Rejected]) -> Batch:
    """The batch again, less what is in the dead letters by now: applying it changes nothing but the offsets, which a
    store leaves where they are while something is rejected, so that a crash before the letters repeats them."""
    places = {(letter.record.partition, letter.record.offset) for letter in rejected}
    rest = [record for record in batch.records if (record.partition, record.offset) not in places]
    return replace(batch, records=rest)
