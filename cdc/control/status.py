"""What `cdc.sync_statistics()` and `cdc.check_record()` tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection
from psycopg.types.json import Jsonb

from cdc.control.queries import rows


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """One store and table. `source_rows` and `covered_rows` are counted in the table now (None when it is gone):
    covered are those the watermark proves to be in the store, letters aside; `store_rows` is what the store counted at
    `recorded_at`; `parked` its open letters; lag in seconds and bytes of WAL; the newest verify run's end and
    outcome."""

    store: str
    table_name: str
    complete: bool
    source_rows: int | None
    covered_rows: int | None
    store_rows: int | None
    parked: int
    lag_seconds: float | None
    lag_bytes: int | None
    recorded_at: datetime
    verified_at: datetime | None
    verified_equal: bool | None


@dataclass(frozen=True, slots=True)
class RecordStatus:
    """One record: whether the row is there, the transaction that wrote it, its version vector where the table has one,
    the stores that have this version and those not proven to have it, open letters, the newest conflicts."""

    present: bool
    xid: int | None
    version: dict[str, Any] | None
    stores: list[str]
    lacking: list[str]
    letters: list[dict[str, Any]]
    conflicts: list[dict[str, Any]]


def statistics(connection: Connection[Any]) -> list[StoreStatistics]:
    """Each store and table; reads the tables once. Raises psycopg.Error."""
    return rows(connection, StoreStatistics, "statistics")


def check(connection: Connection[Any], table: str, key: Mapping[str, Any]) -> RecordStatus:
    """Of the row with this key, {column: value}, in schema.table. Raises psycopg.Error, also for no such table."""
    return rows(connection, RecordStatus, "check_record", table=table, key=Jsonb(dict(key)))[0]
