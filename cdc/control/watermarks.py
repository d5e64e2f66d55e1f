"""How far each store has applied each table, kept in `cdc.watermarks`: a row a store and table, no write per record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection

from cdc.control.queries import run


@dataclass(frozen=True, slots=True)
class Watermark:
    """What one store says of one table.

    `table` is schema.table. `position` (32 hex digits, wire form): everything at or before it is applied, as
    `Freshness.position` says; None when the store holds nothing that is known. `committed_at`: the source's time of
    that (`Freshness.at`), aware, None with `position`. `complete`: the table's snapshot is done in progress AND the
    store has applied it; until then no row counts as being there. `rows`: what the store counts, None when unknown.
    `history`: `<system_id>/<timeline>/<database_oid>` of progress; None for the database's own of now, which is right
    as long as the store was filled from this very database."""

    store: str
    table: str
    position: str | None
    committed_at: datetime | None
    complete: bool
    rows: int | None = None
    history: str | None = None


def record(connection: Connection[Any], watermarks: Iterable[Watermark]) -> None:
    """Overwrites what is known, in one transaction, and notes a mark for later ones. Call it every few seconds: rows
    show up in `cdc.memory_sync_status` one call after the store has them.

    The connection is outside of a transaction, or in one that has written nothing yet. Raises psycopg.Error."""
    with connection.transaction():
        run(connection, "mark")
        for watermark in sorted(watermarks, key=lambda one: (one.store, one.table)):  # one order: no deadlock
            run(
                connection,
                "record_watermark",
                store=watermark.store,
                table=watermark.table,
                position=watermark.position,
                committed_at=watermark.committed_at,
                complete=watermark.complete,
                rows=watermark.rows,
                history=watermark.history,
            )
