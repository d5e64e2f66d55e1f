"""What a consumer shows of itself: counts of its work, and of the store, asked from the store itself."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cdc import metrics
from cdc.envelope import decode_event
from consumers.store import Applied, Batch, Inspectable, Record

COUNT_SHARE = 0.02  # of the time may go into counting rows: a walk over millions of records takes seconds


class Gauges:
    """One store's metrics. `counts` is its reading side; without one the rows are not shown, rather than guessed."""

    def __init__(self, store: str, counts: Inspectable | None) -> None:
        self._store = store
        self._counts = counts
        self._next_count = 0.0
        self._shows = True
        self._rows: dict[str, int] = {}  # as shown, by table
        self._upserts = 0

    def up(self, answers: bool) -> None:
        """Whether the store answered last."""
        metrics.STORE_UP.labels(self._store).set(answers)

    def lag(self, records: int) -> None:
        """Records in the topics not yet applied."""
        metrics.STORE_OFFSET_LAG.labels(self._store).set(records)

    def show(self, rows: bool) -> None:
        """Whether rows are shown: those of a store that is being filled are no truth, and least of all 0."""
        self._shows = rows
        if not rows:
            self._next_count = 0.0
            for table in list(self._rows):
                self._withdraw(table)

    def _withdraw(self, table: str) -> None:
        del self._rows[table]
        metrics.STORE_ROWS.remove(self._store, table)

    async def count(self, tables: Sequence[tuple[str, str]]) -> None:
        """Rows of each `(schema, table)`, the rarer the longer it takes. Raises what the store raises."""
        started = time.monotonic()
        if self._counts is None or not self._shows or started < self._next_count:
            return
        for schema, table in tables:
            upserts = self._upserts
            rows = await self._counts.count(schema, table)
            if not self._shows:
                return  # it was lost meanwhile
            if rows or upserts == self._upserts:
                self._rows[f"{schema}.{table}"] = rows
                metrics.STORE_ROWS.labels(self._store, f"{schema}.{table}").set(rows)
        ended = time.monotonic()
        self._next_count = ended + (ended - started) / COUNT_SHARE

    def applied(self, batch: Batch, applied: Applied) -> None:
        """A batch's counts, and the time from commit to applied of its last record: a sample, it costs a decode."""
        table = f"{batch.schema}.{batch.table}"
        metrics.STORE_RECORDS.labels(self._store, table, "upsert").inc(applied.upserts)
        self._upserts += applied.upserts
        if applied.upserts and self._rows.get(table) == 0:
            self._withdraw(table)  # a count may be some seconds old, but not a 0 that is no truth any more
            self._next_count = 0.0
        metrics.STORE_RECORDS.labels(self._store, table, "delete").inc(applied.deletes)
        metrics.STORE_STALE.labels(self._store).inc(applied.stale)
        metrics.STORE_BATCH.labels(self._store).observe(len(batch.records))
        refused = {rejected.record for rejected in applied.rejected}
        for record in reversed(batch.records):
            if record.value is not None and record not in refused:
                self._timed(record, record.value)
                return

    def _timed(self, record: Record, value: bytes) -> None:
        event = decode_event(value)
        if event.op != "r":  # rows of a snapshot were committed long before
            seconds = max(0.0, time.time() - event.source.ts_us / 1e6)
            metrics.COMMIT_TO_APPLIED.labels(self._store).observe(seconds)

    def truncated(self, batch: Batch, rows: int) -> None:
        """Rows that a marker removed."""
        metrics.STORE_RECORDS.labels(self._store, f"{batch.schema}.{batch.table}", "truncate").inc(rows)
