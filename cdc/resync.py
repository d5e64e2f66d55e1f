"""Resync: when the source's history broke, a new epoch. Every table is read again, and what no longer exists is swept.

Needed after a gap: the slot lost, moved or recreated, another server or timeline, a restore. Readers of the stores
go on all the while: rows of the new epoch outrank the old ones as they arrive, and the sweep at each snapshot's end
removes those that were deleted unseen.
"""

from __future__ import annotations

import msgspec

from cdc.config import Config
from cdc.errors import PreconditionError
from cdc.failpoint import failpoint
from cdc.kafka.chunk import Chunk
from cdc.kafka.logs import highest_epoch, read_logs
from cdc.kafka.progress import Progress, SnapshotState, read_progress
from cdc.kafka.topics import ensure_topics
from cdc.kafka.writer import Writer
from cdc.session import first_progress, usable
from cdc.source.catalog import Catalog
from cdc.source.connection import connect
from cdc.source.history import read_history, refuse_standby
from cdc.source.slot import create_slot, drop_slot, ensure_publication, read_slot
from cdc.source.stream import identify


async def resync(config: Config) -> Progress:
    """Recreates the slot and writes the progress of a new epoch; the next `cdc reader` does the rest.

    Raises PreconditionError while a reader is running, ConnectError. May be repeated after a failure.
    """
    catalog = Catalog(None, config)
    try:
        tables = usable(catalog.selected_tables(), config)
    finally:
        catalog.close()
    topics = await ensure_topics(config.kafka, tables)
    writer = Writer(config, topics)
    with connect(config.postgres) as connection:
        refuse_standby(connection)
        slot = read_slot(connection, config.postgres.slot)
        if slot is not None and slot.active:
            raise PreconditionError(f"slot {slot.name} is in use by a reader", hint="stop `cdc reader` first")
        await writer.start()  # fences, so that the progress read next is the last
        try:
            old = await read_progress(config)
            if config.postgres.plugin == "pgoutput":  # before the slot: it cannot decode what was written without one
                ensure_publication(connection, config.postgres, tables)
            drop_slot(connection, config.postgres.slot)
            failpoint("resync.slot-dropped")
            start = create_slot(connection, config.postgres)
            failpoint("resync.slot-created")
            chunk = Chunk()
            epoch = 1 + (old.epoch if old else await highest_epoch(config, topics))
            first = first_progress(config, identify(config.postgres), start, epoch=epoch)
            # also with snapshot = 'never': the stores hold rows of before, which only reading the tables proves
            states = {f"{schema}.{name}": SnapshotState() for schema, name in tables}
            oid = read_history(connection).database_oid
            logs = await read_logs(config.kafka, topics)
            chunk.progress = msgspec.structs.replace(first, snapshots=states, database_oid=oid, logs=logs)
            await writer.write(chunk)
            failpoint("resync.written")
        finally:
            await writer.close()
    return chunk.progress
