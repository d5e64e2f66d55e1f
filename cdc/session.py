"""The start of a reader, in the order that loses nothing: slot, fence, progress, comparison, stream.

1. What is selected: tables, their identities; topics made or checked.
2. Acquire the slot (a busy slot makes this reader a standby).
3. Fence the old writer (InitProducerId), so that nothing can be committed behind our back.
4. Read progress (read_committed).
5. Compare: a slot ahead of progress, missing, lost, or of another server is a gap; so are topics that lost records;
   refused, with the remedy.
6. What is at or below progress will be skipped by the assembler.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import msgspec
from psycopg import Connection

from cdc.config import Config
from cdc.dead_letter import READER
from cdc.errors import AbsentError, ConnectError, PreconditionError
from cdc.failpoint import failpoint
from cdc.kafka.logs import compared
from cdc.kafka.progress import Progress, SnapshotState, read_progress
from cdc.kafka.topics import ensure_topics
from cdc.kafka.writer import Writer
from cdc.log import get
from cdc.oversized import Oversized, open_oversized
from cdc.source.backfill import kept
from cdc.source.beside import beside
from cdc.source.catalog import Catalog, SelectedTable
from cdc.source.connection import connect
from cdc.source.definition import ask, changed, read_definitions
from cdc.source.events import Decoder
from cdc.source.history import check_history, read_history, refuse_standby
from cdc.source.pgoutput import PgoutputDecoder
from cdc.source.slot import Slot, check_gap, create_slot, ensure_publication, read_slot
from cdc.source.stream import Stream, identify
from cdc.source.wal2json import Wal2jsonDecoder

log = get(__name__)


@dataclass(slots=True)
class Session:
    """Everything a running reader holds. Close it with `close`."""

    stream: Stream
    writer: Writer
    decoder: Decoder
    catalog: Catalog
    connection: Connection  # beside the stream: re-selects
    database: str
    progress: Progress
    tables: list[tuple[str, str]]
    oversized: Oversized
    confirmed_lsn: int  # where the slot stood when the stream began

    async def close(self) -> None:
        """Frees the slot, then the rest."""
        self.stream.close()
        await self.writer.close()
        self.catalog.close()
        self.connection.close()


async def open_session(config: Config) -> Session:
    """The steps above. Raises SlotBusy, GapError, PreconditionError, TopicError, ConnectError, FencedError."""
    catalog = Catalog(None, config)
    connection: Connection | None = None
    try:
        tables = usable(await beside(catalog.selected_tables), config)  # 1, beside: a silent server takes its time
        partitions = await ensure_topics(config.kafka, tables)
        partitions[config.kafka.dead_letter_topic(READER)] = 1
        connection = connect(config.postgres)
        refuse_standby(connection)
        return await _open(config, catalog, connection, tables, partitions)
    except BaseException:
        if connection is not None:
            connection.close()
        catalog.close()
        raise


async def _open(
    config: Config,
    catalog: Catalog,
    connection: Connection,
    tables: list[tuple[str, str]],
    partitions: dict[str, int],
) -> Session:
    if config.postgres.plugin == "pgoutput":
        ensure_publication(connection, config.postgres, tables)
    writer = Writer(config, partitions)
    slot = read_slot(connection, config.postgres.slot)
    if slot is None or slot.plugin != config.postgres.plugin or slot.lost:
        await writer.start()
        try:
            slot = await _fresh_slot(config, connection, slot)
        finally:
            await writer.close()
    decoder = decoder_for(config, catalog)
    stream = Stream.start(config.postgres, decoder.options(), asyncio.get_running_loop())  # 2
    writer = Writer(config, partitions)
    try:
        held = cast(Slot, read_slot(connection, config.postgres.slot))  # as it stands now that it is ours
        async with _answering(stream, config, held.confirmed_lsn):
            await writer.start()  # 3
            progress, confirmed = await _progress(config, connection, tables)  # 4, 5
            topics = {config.kafka.table_topic(*name): config.kafka.partitions for name in tables}
            progress = await compared(config, progress, topics, writer.ends)
            progress = defined(config, connection, progress, tables)
            oversized = await open_oversized(config)
    except BaseException:
        stream.close()
        await writer.close()
        raise
    database = connection.info.dbname
    return Session(stream, writer, decoder, catalog, connection, database, progress, tables, oversized, confirmed)  # 6


@asynccontextmanager
async def _answering(stream: Stream, config: Config, confirmed_lsn: int) -> AsyncIterator[None]:
    """Tells the server meanwhile that somebody is there, and nothing new: Kafka may take longer than
    wal_sender_timeout. Raises ConnectError at the end when the stream broke."""

    async def work() -> None:
        while True:
            stream.send_status(confirmed_lsn)
            await asyncio.sleep(config.postgres.status_seconds)

    status = asyncio.ensure_future(work())
    try:
        yield
    finally:
        status.cancel()
        ended = await asyncio.gather(status, return_exceptions=True)
    if isinstance(ended[0], ConnectError):
        raise ended[0]


async def _fresh_slot(config: Config, connection: Connection, slot: Slot | None) -> Slot:
    """Creates the slot when nothing was ever read; refuses what would lose changes."""
    progress = await read_progress(config)
    check_gap(slot, progress, identify(config.postgres), config.postgres)
    create_slot(connection, config.postgres)
    failpoint("reader.slot-created")
    return cast(Slot, read_slot(connection, config.postgres.slot))


async def _progress(config: Config, connection: Connection, tables: list[tuple[str, str]]) -> tuple[Progress, int]:
    """Progress, and where the slot stands. Raises GapError."""
    slot = cast(Slot, read_slot(connection, config.postgres.slot))
    system, history = identify(config.postgres), read_history(connection)
    progress = await read_progress(config)
    check_gap(slot, progress, system, config.postgres)
    check_history(history, progress)
    if progress is None:
        progress = first_progress(config, system, slot.confirmed_lsn, epoch=1)
    progress = msgspec.structs.replace(progress, database_oid=history.database_oid)
    return _selected(config, progress, tables), slot.confirmed_lsn


def _selected(config: Config, progress: Progress, tables: list[tuple[str, str]]) -> Progress:
    """Forgets the snapshots of tables that are not selected: what they go through now passes unseen, so that they have
    to be read again when they are selected once more. Notes those that are to be read, unless snapshot = 'never'.

    One that comes later may have been selected before; its topic then holds rows deleted meanwhile."""
    since = progress.position.after().encode().decode() if progress.commit_lsn else None
    known, never = progress.snapshots, config.postgres.snapshot == "never"
    names = [name for name in map(".".join, tables) if name in known or not never]
    states = {name: known.get(name, SnapshotState(since=since)) for name in names}
    return msgspec.structs.replace(progress, snapshots=states, backfills=kept(progress.backfills, tables))


def defined(config: Config, connection: Connection, progress: Progress, tables: list[tuple[str, str]]) -> Progress:
    """Asks for snapshots of tables whose definition changed, and notes what all are now. Raises PreconditionError."""
    now = read_definitions(connection, config.postgres, tables)
    for label in changed(progress.definitions, now):
        if config.postgres.snapshot == "never":
            log.warning(
                "a table was changed; rows of before keep their columns", table=label, hint="run `cdc snapshot`"
            )
        else:
            log.info("a table was changed, it is read again", table=label)
            ask(connection, label)
    return msgspec.structs.replace(progress, definitions={**progress.definitions, **now})


def first_progress(config: Config, system: tuple[str, int], end_lsn: int, *, epoch: int) -> Progress:
    """Nothing read yet: the stream starts at `end_lsn`."""
    return Progress(
        source=config.source_name,
        slot=config.postgres.slot,
        system_id=system[0],
        timeline=system[1],
        epoch=epoch,
        end_lsn=end_lsn,
    )


def decoder_for(config: Config, catalog: Catalog) -> Decoder:
    """The configured plugin's decoder."""
    return PgoutputDecoder(catalog) if config.postgres.plugin == "pgoutput" else Wal2jsonDecoder(catalog)


def usable(selected: list[SelectedTable], config: Config) -> list[tuple[str, str]]:
    """Names of the selected tables. Raises AbsentError: none yet; PreconditionError: no usable identity, a key that
    does not travel."""
    if not selected:
        raise AbsentError(
            f"PostgreSQL: no table matches {', '.join(config.postgres.tables)}",
            hint="create the table (sql/010_memories.sql: `cdc init`), or correct [postgres] tables",
        )
    for table in selected:
        name = f"{table.schema}.{table.name}"
        if table.unusable and config.postgres.missing_identity == "refuse":
            raise PreconditionError(
                f"updates and deletes of {', '.join(table.unusable)} would be lost: it has no usable replica identity",
                hint=f"{table.remedy} (or [postgres] missing_identity = 'allow': inserts only)",
            )
        settings = config.table(table.schema, table.name)
        hidden = [column for column in table.key if not settings.keeps(column) or column in settings.mask]
        if hidden:
            raise PreconditionError(
                f"the key column {hidden[0]} of {name} is excluded or masked: records would have no key",
                hint=f"keep {hidden[0]} as it is, or choose another primary key",
            )
    return [(table.schema, table.name) for table in selected]


def wanted_snapshots(session: Session) -> dict[tuple[str, str], SnapshotState]:
    """Tables whose snapshot is not complete."""
    done = SnapshotState(done=True)  # of a table that snapshot = 'never' leaves out
    states = {name: session.progress.snapshots.get(".".join(name), done) for name in session.tables}
    return {name: state for name, state in states.items() if not state.done}
