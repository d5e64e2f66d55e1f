"""How far each store has applied each table, into `cdc.watermarks`: what the views of the control schema tell rows by.

Nothing depends on it but those views: a round that fails is told once, and the next one is tried all the same.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from cdc.commands.asking import translated
from cdc.commands.gateway_control import keep
from cdc.config import Config
from cdc.control import watermarks
from cdc.control.watermarks import Watermark
from cdc.errors import ConnectError, StoreError
from cdc.kafka.progress import Progress, read_progress
from consumers.gateway.parts import Parts, StoreView
from consumers.gateway.stats import Statistics
from consumers.store import Offsets

ROUND_SECONDS = 5.0  # two rounds after a commit the views show it: within the usual objective


class Recorder:
    """Run `round` every ROUND_SECONDS beside the gateway."""

    def __init__(self, config: Config, parts: Parts, statistics: Statistics) -> None:
        self._config = config
        self._parts = parts
        self._statistics = statistics
        self._progress: Progress | None = None

    async def round(self) -> None:
        """Once. Raises ConnectError, StoreError."""
        before, self._progress = self._progress, await translated(self._config, read_progress(self._config))
        tables = await self._statistics.tables()
        found = [mark for view in self._parts.stores for mark in await self._of(view, tables, before)]
        await asyncio.to_thread(keep, self._config, lambda connection: watermarks.record(connection, found))

    async def _of(self, view: StoreView, tables: list[str], before: Progress | None) -> list[Watermark]:
        """None for a store that cannot be asked: what it held it holds, as far as anybody knows."""
        kept = [table for table in tables if view.keeps(table)]
        try:
            offsets = await view.offsets()
        except ConnectError:
            return []
        except StoreError:  # it answers, and has nothing
            return [Watermark(view.name, table, None, None, False) for table in kept]
        return [self._mark(view, table, offsets, before) for table in kept]

    def _mark(self, view: StoreView, table: str, offsets: Offsets, before: Progress | None) -> Watermark:
        """`complete`: the snapshot was done in the progress of the round before, and the store is past that."""
        place = self._parts.timeline.place(offsets, [table])
        at = None if place.fresh_until is None else datetime.fromtimestamp(place.fresh_until, UTC)
        snapshot = before.snapshots.get(table) if before is not None else None
        complete = (
            before is not None
            and snapshot is not None
            and snapshot.done
            and place.position is not None
            and place.position.encode() >= before.position.encode()
        )
        rows = self._statistics.known(view.name, table)
        return Watermark(view.name, table, place.position, at, complete, rows, self._history())

    def _history(self) -> str | None:
        """The server that progress speaks of: a promoted standby is another one until the reader has noticed."""
        known = self._progress
        return None if known is None else f"{known.system_id}/{known.timeline}/{known.database_oid}"
