"""The replication slot and the publication: creating them, reading their state, and refusing a gap.

PostgreSQL ≥ 15 silently starts at the slot's confirmed position when asked for something older, so a slot that was
moved or recreated loses changes with no error. Progress and slot are therefore compared at every start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import psycopg
from psycopg import Connection, sql
from psycopg.rows import class_row

from cdc.config import Postgres
from cdc.errors import GapError, PreconditionError
from cdc.kafka.progress import Progress
from cdc.position import format_lsn
from cdc.source.connection import said
from cdc.source.history import RESYNC, since

Name = tuple[str, str]  # schema, table

_SLOT = """
SELECT slot_name AS name, plugin, active, coalesce(wal_status, '') AS wal_status,
       coalesce((confirmed_flush_lsn - '0/0')::bigint, 0) AS confirmed_lsn,
       coalesce((pg_current_wal_lsn() - restart_lsn)::bigint, 0) AS retained_bytes,
       safe_wal_size::bigint AS safe_bytes, database
FROM pg_replication_slots WHERE slot_name = %s
"""


class Slot(NamedTuple):
    """One row of pg_replication_slots; sizes in bytes, `safe_bytes` None when WAL retention is unlimited."""

    name: str
    plugin: str
    active: bool
    wal_status: str
    confirmed_lsn: int
    retained_bytes: int
    safe_bytes: int | None
    database: str

    @property
    def lost(self) -> bool:
        """The server threw away WAL the slot needs."""
        return self.wal_status == "lost"


def read_slot(connection: Connection, name: str) -> Slot | None:
    """The slot's state now, None when there is none."""
    with connection.cursor(row_factory=class_row(Slot)) as cursor:
        return cursor.execute(_SLOT, (name,)).fetchone()


def create_slot(connection: Connection, config: Postgres, *, temporary: bool = False) -> int:
    """Creates the slot; returns its consistent LSN. A temporary one ends with the connection. Raises PreconditionError
    with the remedy."""
    try:
        row = connection.execute(
            "SELECT (lsn - '0/0')::bigint FROM pg_create_logical_replication_slot(%s, %s, %s)",
            (config.slot, config.plugin, temporary),
        ).fetchone()
    except psycopg.Error as error:
        text = said(error)
        raise PreconditionError(f"the slot {config.slot} cannot be created: {text}", hint=_slot_hint(text)) from error
    assert row is not None
    return int(row[0])


def drop_slot(connection: Connection, name: str) -> None:
    """Removes the slot when it is there. Raises PreconditionError while a reader holds it."""
    try:
        connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", (name,)
        )
    except psycopg.errors.ObjectInUse as error:
        raise PreconditionError(f"slot {name} is in use by a reader", hint="stop `cdc reader` first") from error


def ensure_publication(connection: Connection, config: Postgres, tables: Sequence[Name]) -> None:
    """Creates the publication pgoutput needs, or adds the missing tables. Raises PreconditionError.

    Not via the partition root: then a TRUNCATE of a single partition would not be sent at all; the decoders fold.
    """
    name = sql.Identifier(config.publication)
    wanted = sql.SQL(", ").join(sql.Identifier(*table) for table in tables)
    try:
        exists = connection.execute("SELECT 1 FROM pg_publication WHERE pubname = %s", (config.publication,)).fetchone()
        if not exists:
            connection.execute(
                sql.SQL("CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = false)").format(
                    name, wanted
                )
            )
            return
        missing = [table for table in tables if not _published(connection, config.publication, table)]
        for table in missing:
            connection.execute(sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(name, sql.Identifier(*table)))
    except psycopg.Error as error:
        raise PreconditionError(
            f"publication {config.publication}: {said(error)}",
            hint="create it as the tables' owner, WITH (publish_via_partition_root = false)",
        ) from error


def check_gap(slot: Slot | None, progress: Progress | None, system: tuple[str, int], config: Postgres) -> None:
    """Raises GapError when the changes between progress and slot are lost; PreconditionError for a slot of another
    kind."""
    if slot is not None and slot.plugin != config.plugin:
        raise PreconditionError(
            f"slot {slot.name} was made for {slot.plugin}, the config says {config.plugin}",
            hint=f"set [postgres] plugin = '{slot.plugin}', or name another slot and run `cdc resync`",
        )
    if slot is not None and slot.lost:
        raise GapError(
            f"slot {slot.name} was invalidated by the server: its WAL is gone, and with it all changes "
            f"since {since(progress) if progress else 'the slot was made'}",
            hint=RESYNC,
        )
    if progress is None:
        return
    if (progress.system_id, progress.timeline) != system:
        raise GapError(
            f"the source is another server or timeline: progress is of system {progress.system_id} timeline "
            f"{progress.timeline} up to {since(progress)}, the source is system {system[0]} timeline {system[1]}: "
            "what it holds since, and whether it holds all of that, is unknown",
            hint=RESYNC,
        )
    if slot is None:
        raise GapError(
            f"slot {config.slot} is gone while progress stands at {since(progress)}: "
            "all changes since are lost to the stream",
            hint=RESYNC,
        )
    if slot.confirmed_lsn > progress.end_lsn:
        raise GapError(
            f"slot {slot.name} stands at {format_lsn(slot.confirmed_lsn)}, progress at {since(progress)}: "
            "the changes between are lost to the stream",
            hint=RESYNC,
        )


def _published(connection: Connection, publication: str, table: Name) -> bool:
    found = connection.execute(
        "SELECT 1 FROM pg_publication p LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid "
        "AND r.prrelid = %s::regclass WHERE p.pubname = %s AND (p.puballtables OR r.oid IS NOT NULL)",
        (sql.Identifier(*table).as_string(connection), publication),
    ).fetchone()
    return found is not None


def _slot_hint(text: str) -> str:
    if "wal_level" in text:
        return "ALTER SYSTEM SET wal_level = logical; and restart PostgreSQL"
    if "permission" in text or "must be" in text:
        return "ALTER ROLE … REPLICATION"
    if "replication slots are in use" in text:
        return "raise max_replication_slots and restart PostgreSQL, or drop a slot nobody uses"
    if "output_plugin_libraries" in text or "not allowed" in text:
        return (
            "ALTER SYSTEM SET output_plugin_libraries = pgoutput, test_decoding, wal2json; SELECT pg_reload_conf(); "
            "or set [postgres] plugin = 'pgoutput'"
        )
    if "could not access file" in text or "could not load" in text:
        return "install the plugin (Debian: postgresql-<version>-wal2json), or set [postgres] plugin = 'pgoutput'"
    return "run `cdc doctor`"
