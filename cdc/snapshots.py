"""The table snapshots and backfills of one session, beside the stream: what is wanted, and what runs at once.

Whole tables come one after the other. Backfills have lanes of their own, so that a slow one holds up neither a new
table nor a repair; keys, of which there are few, wait for no condition that reads a whole table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from cdc.assembler import Assembler
from cdc.config import Config
from cdc.errors import DecodeError, PreconditionError
from cdc.kafka.progress import Backfill, SnapshotState
from cdc.log import get
from cdc.metrics import BACKFILL_OPEN, BACKFILLS
from cdc.session import Session, wanted_snapshots
from cdc.source.backfill import KIND, OPEN, open_among, read_request
from cdc.source.beside import beside
from cdc.source.condition import Refused, find
from cdc.source.connection import connect
from cdc.source.events import Table
from cdc.source.snapshot import OnProgress, SnapshotJob

log = get(__name__)
AT_ONCE = 2  # backfills of keys, and as many of other parts: each takes `snapshot_workers` connections at most
Name = tuple[str, str]


class Snapshots:
    """`wake` is called when progress says something new that no chunk carries."""

    def __init__(
        self,
        config: Config,
        session: Session,
        assembler: Assembler,
        on_snapshot: OnProgress,
        wake: Callable[[], None],
    ) -> None:
        self._config, self._session, self._assembler = config, session, assembler
        self._on_snapshot, self._wake = on_snapshot, wake
        self._wanted: asyncio.Queue[tuple[Name, SnapshotState]] = asyncio.Queue()
        self._keyed: asyncio.Queue[str] = asyncio.Queue()
        self._parts: asyncio.Queue[str] = asyncio.Queue()

    async def work(self) -> None:
        """Until cancelled. Raises what stops the session."""
        for name, state in wanted_snapshots(self._session).items():
            self._wanted.put_nowait((name, state))
        for identity, backfill in open_among(self._assembler.backfills).items():
            self._lane(backfill).put_nowait(identity)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tables())
            for lane in (self._keyed, self._parts):
                for _ in range(AT_ONCE):
                    group.create_task(self._backfills(lane))

    def request(self, content: dict[str, object]) -> None:
        """A logical message asks for something. Noted in progress, so that a restart does not forget it."""
        if content.get("kind") == KIND:
            return self._backfill_asked(content)
        table = content.get("table")
        if content.get("kind") != "snapshot" or not isinstance(table, list) or tuple(table) not in self._session.tables:
            log.warning("request not understood", reason="unknown kind or table", hint="use `cdc snapshot TABLE`")
            return
        name = (str(table[0]), str(table[1]))
        label = ".".join(name)
        state = SnapshotState(since=self._assembler.here)
        self._assembler.set_snapshot(label, state)
        if label not in self._assembler.requested:  # else the one that has not begun serves both
            self._assembler.requested.add(label)
            self._wanted.put_nowait((name, state))

    def _backfill_asked(self, content: dict[str, object]) -> None:
        try:
            identity, state = read_request(content)
        except DecodeError as error:
            log.warning("request not understood", reason=error.message, hint=error.hint)
            return
        if identity in self._assembler.backfills:
            return
        if tuple(state.table.split(".", 1)) not in self._session.tables:
            state = msgspec.structs.replace(state, failed="the table does not travel")
        elif len(open_among(self._assembler.backfills)) >= OPEN:
            state = msgspec.structs.replace(state, failed=f"{OPEN} backfills are open already")
        self._assembler.set_backfill(identity, state)
        if not state.ended:
            self._lane(state).put_nowait(identity)

    def _lane(self, state: Backfill) -> asyncio.Queue[str]:
        return self._keyed if state.keys else self._parts

    async def _tables(self) -> None:
        """One table after the other, while the stream goes on."""
        while True:
            name, state = await self._wanted.get()
            self._assembler.requested.discard(".".join(name))
            catalog = self._session.catalog
            table = catalog.table(*name)
            job = SnapshotJob(
                self._config, table, catalog.copy_columns(table), state, self._assembler.offer, self._on_snapshot
            )
            await job.run()

    async def _backfills(self, lane: asyncio.Queue[str]) -> None:
        while True:
            identity = await lane.get()
            state = self._assembler.backfills[identity]
            with BACKFILL_OPEN.labels(state.table).track_inprogress():
                outcome = "done"
                try:
                    await self._backfill(identity, state)
                except* PreconditionError as group:  # Refused is one
                    outcome = "failed"
                    self._failed(identity, group)
                BACKFILLS.labels(state.table, outcome).inc()

    async def _backfill(self, identity: str, state: Backfill) -> None:
        schema, name = state.table.split(".", 1)
        catalog = self._session.catalog
        table = await beside(catalog.table, schema, name)
        _refuse_other_keys(table, state)
        condition = await beside(self._condition, identity, state) if state.condition else None
        job = SnapshotJob(
            self._config,
            table,
            await beside(catalog.copy_columns, table),
            state,
            self._assembler.offer,
            self._on_snapshot,
            backfill=identity,
            condition=condition,
        )
        await job.run()

    def _condition(self, identity: str, state: Backfill) -> str:
        with connect(self._config.postgres, name="memory-cdc backfill") as connection:
            return find(connection, identity, state.table)

    def _failed(self, identity: str, group: BaseExceptionGroup[PreconditionError]) -> None:
        state = self._assembler.backfills[identity]
        error = group.exceptions[0]
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        log.warning("a backfill failed", table=state.table, id=identity, reason=error.message, hint=error.hint)
        self._assembler.set_backfill(identity, msgspec.structs.replace(state, failed=error.message))
        self._wake()


def _refuse_other_keys(table: Table, state: Backfill) -> None:
    if any(len(key) != len(table.key) for key in state.keys):
        raise Refused(f"the key of {state.table} has {len(table.key)} columns", hint="give each of them")
