"""What every step of the demo has at hand."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg

from cdc.config import Config
from cdc.demo.command import cdc
from cdc.demo.observer import PATIENCE_SECONDS, Observer
from cdc.demo.rig import Rig
from cdc.demo.screen import Screen
from cdc.demo.summary import Summary
from cdc.demo.texts import Text
from cdc.demo.workload import Change, Writer
from cdc.errors import StoreError

HELD_BACK = 600  # texts kept for the steps after the bulk; a few of them may come twice
LOOK_SECONDS = 0.05  # between two looks whether the stores got there


class Stage:
    """The running pipeline, a writer, and the stores as a client sees them; open it with `on_stage`."""

    def __init__(
        self,
        rig: Rig,
        config: Config,
        texts: Sequence[Text],
        summary: Summary,
        screen: Screen,
        connection: psycopg.AsyncConnection[Any],
        observer: Observer,
    ) -> None:
        self.rig = rig
        self.config = config
        self.summary = summary
        self.screen = screen
        self.observer = observer
        self.rng = random.Random(summary.seed)
        self.bulk = texts[:-HELD_BACK]
        self.writer = Writer(connection, self.rng)
        self._later = texts[-HELD_BACK:]

    async def change(self) -> Change:
        """One more write of any kind, committed."""
        return await self.writer.any(self.rng.choice(self._later))

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Counts and ages are shown meanwhile."""
        async with self.screen.watching(self.observer.look):
            yield

    async def until_equal(self) -> None:
        """Returns when all stores count what PostgreSQL counts. Raises StoreError when they never do."""
        deadline = time.perf_counter() + PATIENCE_SECONDS
        while not (look := await self.observer.look()).equal:
            if time.perf_counter() > deadline:
                raise StoreError(f"the stores do not reach PostgreSQL's rows: {dict(look.rows)}")
            await asyncio.sleep(LOOK_SECONDS)

    async def timed_search(self) -> float:
        """Seconds that a search for some text of the bulk takes a client."""
        text = self.rng.choice(self.bulk).content
        started = time.perf_counter()
        await self.observer.search(text)
        return time.perf_counter() - started

    async def command(self, *arguments: str) -> dict[str, Any]:
        """What `cdc ARGUMENTS --json` says."""
        return await cdc(Path(self.rig.found["config"]), *arguments, quiet=not self.screen.console.is_terminal)


@asynccontextmanager
async def on_stage(rig: Rig, texts: Sequence[Text], summary: Summary, screen: Screen) -> AsyncIterator[Stage]:
    """Everything connected. Raises CdcError."""
    config = rig.config
    connection = await psycopg.AsyncConnection.connect(config.postgres.conninfo(), autocommit=True)
    async with connection, Observer(config) as observer:
        yield Stage(rig, config, texts, summary, screen, connection, observer)
