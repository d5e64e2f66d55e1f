"""Table snapshots: chunks by key, read in parallel while streaming goes on, for all uses (initial, new table,
backfill).

One coordinator a table walks the key; workers read chunks in threads. A chunk is bounded in rows and bytes, and
handed to the reader, which places it among the stream (window.py), writes it and calls `written`. `after` moves only
over chunks that are durable in Kafka without a hole between, so a killed snapshot resumes there and re-reads at most
the chunks in flight.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import psycopg
from psycopg import Connection, pq, sql

from cdc.config import Config
from cdc.errors import CdcError
from cdc.failpoint import failpoint
from cdc.kafka.block import Rows
from cdc.kafka.progress import Backfill, SnapshotState
from cdc.log import get
from cdc.metrics import BACKFILL_ROWS, BACKFILL_TOTAL, SNAPSHOT_ROWS, SNAPSHOT_RUNNING
from cdc.source.beside import beside, opened
from cdc.source.condition import estimate, explained
from cdc.source.connection import connect, connect_error, raw
from cdc.source.copy_text import cells
from cdc.source.copying import copied
from cdc.source.events import MESSAGE_PREFIX, UNCHANGED, Fragment, Table
from cdc.source.pace import Pace
from cdc.source.runs import copy_reader
from cdc.source.spans import Selection, Span, Spans
from cdc.source.visibility import parse_shot
from cdc.source.window import Chunk, Name

log = get(__name__)
CHUNK_BYTES = 4 << 20  # a chunk of wide rows ends early, so that a few times 4 MiB bound the memory
OnProgress = Callable[[str, int, int], None]  # table, rows written, rows estimated (0: unknown)
ESTIMATE = """
SELECT greatest(sum(greatest(c.reltuples, 0)), 0)::bigint
FROM pg_partition_tree(%s::regclass) t JOIN pg_class c ON c.oid = t.relid
"""
MOST_BYTES = 2 * CHUNK_BYTES  # rows may be wider than those before them: so many bytes, and no more is waited for
FIRST_ROWS = 1000  # of a chunk before a row's width is known


@dataclass(slots=True)
class TableSnapshot:
    """State of one table's snapshot: spans done out of order wait in `finished` until the ones before them are."""

    name: Name
    state: SnapshotState
    id: str = ""  # of a backfill
    total: int = 0  # rows, as PostgreSQL estimates: for the progress bar
    next_number: int = 0
    finished: dict[int, tuple[list[str] | None, bool, int]] = field(default_factory=dict)
    ahead: dict[int, int] = field(default_factory=dict)  # rows of parts of spans whose turn has not come

    def advance(self, number: int, chunk: Chunk) -> SnapshotState:
        """A chunk is about to be durable: moves `after` as far as there is no hole."""
        if chunk.gone:  # the last one alone tells of them
            self.state = msgspec.structs.replace(self.state, gone=len(chunk.gone))
        if chunk.whole:
            rows = len(chunk.rows) + self.ahead.pop(number, 0)
            self.finished[number] = (chunk.last_key, chunk.final, rows)
        elif number == self.next_number:
            self._move(chunk.last_key, False, len(chunk.rows) + self.ahead.pop(number, 0))
        else:
            self.ahead[number] = self.ahead.get(number, 0) + len(chunk.rows)
        while (done := self.finished.pop(self.next_number, None)) is not None:
            self.next_number += 1
            self._move(*done)
        return self.state

    def _move(self, last: list[str] | None, final: bool, rows: int) -> None:
        after = last if last is not None else self.state.after
        self.state = msgspec.structs.replace(self.state, done=final, after=after, rows=self.state.rows + rows)


def low_high(connection: Connection, kind: str, chunk_id: str, name: Name) -> None:
    """Writes a watermark message in a transaction of its own."""
    content = json.dumps({"kind": kind, "chunk": chunk_id, "table": list(name)})
    connection.execute("SELECT pg_logical_emit_message(true, %s, %s)", (MESSAGE_PREFIX, content))


class ChunkReader:
    """Reads chunks of one table over one connection; used from a worker's thread."""

    def __init__(
        self, config: Config, table: Table, expressions: list[sql.Composable], selection: Selection, limit: int
    ) -> None:
        self._connection = connect(config.postgres, name="memory-cdc snapshot")
        self._table, self._limit, self._selection = table, limit, selection
        self._read_lines = copy_reader(table)
        self._spans = Spans(table, expressions, selection)
        self._most = FIRST_ROWS

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def bound(self, after: list[str] | None) -> list[str] | None:
        """The key `limit` rows further on, None when the table ends before."""
        row = self._fetch(self._spans.bound(after, self._limit))
        return None if row is None else list(row)

    def _fetch(self, query: sql.SQL | sql.Composed, parameters: Sequence[str] = ()) -> tuple[Any, ...] | None:
        try:
            return self._connection.execute(query, parameters or None).fetchone()
        except psycopg.Error as error:
            raise self._explained(error) from error

    def _explained(self, error: psycopg.Error) -> CdcError:
        """What a person asked for may be what PostgreSQL does not like."""
        return explained(self._connection, error, "this") if any(self._selection) else connect_error(error)

    def check(self) -> None:
        """Raises Refused for a condition that is none, ConnectError."""
        if self._selection.condition is not None:
            estimate(self._connection, self._spans.source, self._selection.condition)

    def estimate(self) -> int:
        """Rows as the planner counts them, 0 when the table was never analyzed: for progress only."""
        if self._selection.keys:
            return len(self._selection.keys)
        if self._selection.condition is not None:
            return estimate(self._connection, self._spans.source, self._selection.condition)
        table = self._spans.source.as_string(self._connection)
        row = self._fetch(sql.SQL(ESTIMATE), (table,))
        return int(row[0]) if row else 0

    def read(self, span: Span, name: Name) -> Chunk:
        """Low message, rows of the span in one snapshot. Raises ConnectError, Refused."""
        chunk_id = uuid.uuid4().hex
        try:
            low_high(self._connection, "low", chunk_id, name)
            chunk = self._read(span, name, chunk_id)
        except psycopg.Error as error:
            raise self._explained(error) from error
        return chunk

    def close_window(self, chunk: Chunk) -> None:
        """The high message; the chunk has to be known to the reader before."""
        try:
            low_high(self._connection, "high", chunk.id, chunk.name)
        except psycopg.Error as error:
            raise connect_error(error) from error

    def _read(self, span: Span, name: Name, chunk_id: str) -> Chunk:
        connection = self._connection
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        shot = connection.execute("SELECT pg_current_snapshot()::text").fetchone()
        assert shot is not None
        rows, last, cut = self._rows(span)
        final = span.upto is None and not cut
        gone = self._gone() if final and self._selection.keys else []
        connection.execute("ROLLBACK")
        return Chunk(chunk_id, name, self._table, rows, parse_shot(shot[0]), last, final, not cut, gone)

    def _gone(self) -> list[list[Fragment]]:
        """All keys asked for that have no row, however far the rows are: the last chunk alone tells of them."""
        found = raw(self._connection).execute(self._spans.absent()).pgresult
        return [] if found is None else [self._old(found, place) for place in range(found.ntuples)]

    def _old(self, found: pq.abc.PGresult, place: int) -> list[Fragment]:
        table = self._table
        old: list[Fragment] = [UNCHANGED] * len(table.columns)
        for column, index in enumerate(table.key):
            old[index] = table.columns[index].codec(found.get_value(place, column) or b"")
        return old

    def _rows(self, span: Span) -> tuple[Rows, list[str] | None, bool]:
        """`(rows, key of the last one, whether a limit cut them short)`."""
        limit = min(self._most, self._limit + 1)
        query = self._spans.rows(span, limit).as_bytes(self._connection)
        found = copied(self._connection, query, self._read_lines, MOST_BYTES)
        if not found.rows.count:
            return found.rows, None, False
        self._most = CHUNK_BYTES // (found.rows.nbytes // found.rows.count) + 1
        return found.rows, self._key(found.last), not found.whole or found.rows.count == limit

    def _key(self, line: bytes) -> list[str]:
        """Texts of the key's columns."""
        texts = cells(line)
        return [(texts[place] or b"").decode() for place in self._table.key]


class SnapshotJob:
    """Reads one table, or the part of it that a backfill selects. `offer` registers a chunk with the reader and
    resolves to False when it has to be read again."""

    def __init__(
        self,
        config: Config,
        table: Table,
        expressions: list[sql.Composable],
        state: SnapshotState,
        offer: Callable[[Chunk, TableSnapshot, int], asyncio.Future[bool]],
        on_progress: OnProgress,
        *,
        backfill: str = "",
        condition: str | None = None,
    ) -> None:
        self._config, self._table, self._expressions = config, table, expressions
        self.snapshot = TableSnapshot((table.schema, table.name), state, backfill)
        rate, keys = (state.rate, state.keys) if isinstance(state, Backfill) else (None, [])
        self._selection, self._pace = Selection(keys, condition), Pace(rate)
        self._offer, self._on_progress = offer, on_progress
        self._limit = min(config.postgres.snapshot_chunk_rows, rate or config.postgres.snapshot_chunk_rows)
        self._workers = 1 if keys else config.postgres.snapshot_workers
        self._numbers = 0
        self._after = state.after
        self._exhausted = state.done
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Until every chunk is durable in Kafka. Raises ConnectError, and Refused in a group when a condition or a key
        fails."""
        label, kind = ".".join(self.snapshot.name), "backfill" if self.snapshot.id else "snapshot"
        running = SNAPSHOT_RUNNING.labels(label)
        running.inc(not self.snapshot.id)
        log.info(f"{kind} starts", table=label, resumed=self._after is not None)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._workers):
                    group.create_task(self._worker())
        finally:
            running.dec(not self.snapshot.id)
        log.info(f"{kind} done", table=label, count=self.snapshot.state.rows)

    async def _worker(self) -> None:
        asked = (self._config, self._table, self._expressions, self._selection, self._limit)
        async with opened(ChunkReader, *asked) as reader:
            await beside(reader.check)
            self.snapshot.total = self.snapshot.total or await beside(reader.estimate)
            if self.snapshot.id:
                BACKFILL_TOTAL.labels(".".join(self.snapshot.name)).set(self.snapshot.total)
            while (span := await self._next_span(reader)) is not None:
                await self._copy(reader, span)

    async def _next_span(self, reader: ChunkReader) -> Span | None:
        async with self._lock:
            if self._exhausted:
                return None
            upto = await beside(reader.bound, self._after)
            span = Span(self._after, upto, self._numbers)
            self._numbers += 1
            self._after, self._exhausted = upto, upto is None
            return span

    async def _copy(self, reader: ChunkReader, span: Span) -> None:
        """Reads and offers a span, again when it raced, in several chunks when its rows are wide."""
        name = self.snapshot.name
        while True:
            chunk = await beside(reader.read, span, name)
            failpoint("snapshot.chunk-read")
            written = self._offer(chunk, self.snapshot, span.number)
            await beside(reader.close_window, chunk)
            failpoint("snapshot.chunk-offered")
            if not await written:
                continue
            failpoint("snapshot.chunk-written")
            (BACKFILL_ROWS if self.snapshot.id else SNAPSHOT_ROWS).labels(".".join(name)).inc(len(chunk.rows))
            self._on_progress(".".join(name), self.snapshot.state.rows, self.snapshot.total)
            await self._pace.sent(len(chunk.rows))
            if chunk.whole:
                return
            span = Span(chunk.last_key, span.upto, span.number)
