"""`GET /events`: the changes as server-sent events, live, from a position on.

An event's id is its position, so a client that comes back with the last one (`Last-Event-ID`, as browsers do by
themselves) misses nothing and sees nothing twice. A comment comes when there is nothing to tell, with an id where the
client has everything up to a newer position. The last event is `end`: why, and from where to go on.
(HTML Living Standard, "Server-sent events")
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Annotated, Any

from aiokafka.errors import KafkaError
from fastapi import APIRouter, Header, HTTPException, Query
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from cdc import log
from cdc.config import Config
from cdc.errors import CdcError, ConfigError
from consumers.gateway.changes import Change, Wanted, frame, shown
from consumers.gateway.feed import REACH_SECONDS, CutError, Feed
from consumers.gateway.records import NAME
from consumers.gateway.refusals import Refusal
from consumers.gateway.ring import Ring
from consumers.store import Partition

LOG = log.get(__name__)

POSITION = r"^[0-9a-f]{32}$"
SOME = 500  # changes a write: the client's socket paces what is read for it
BEAT_SECONDS = 10.0  # below the time after which proxies give a silent connection up
STALLED_SECONDS = 30.0  # a client that takes nothing that long is gone, or as good as
AGAIN_SECONDS = 5  # what a client that finds no place is told to wait
AGAIN_MS = 2000  # how long a browser waits before it comes back
SLOW = "you are too slow: newer changes are held for a while only"
CLOSED = "events are closed here → set [gateway] event_tables"
EVENT = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": POSITION},
        "event": {"type": "string", "enum": ["change", "end"]},
        "data": {"type": "string"},
    },
}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "server-sent events", "content": {"text/event-stream": {"schema": EVENT}}},
    403: {"description": "none, or not this table", "model": Refusal},
    410: {"description": "no longer in the topics", "model": Refusal},
}


class _StalledError(Exception):
    """A client takes nothing."""


class Stream(StreamingResponse):
    """An endless answer, which gives its place back whatever ends it."""

    def __init__(self, events: AsyncGenerator[bytes, None], feed: Feed) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events = events
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def bounded(message: Message) -> None:
            try:
                async with asyncio.timeout(STALLED_SECONDS):
                    await send(message)
            except TimeoutError as error:
                raise _StalledError from error

        try:
            await super().__call__(scope, receive, bounded)
        except _StalledError:
            LOG.info("a client of events took nothing and is let go", seconds=STALLED_SECONDS)
        finally:
            self._feed.release()
            await self._events.aclose()


def events(config: Config, feed: Feed) -> APIRouter:
    """`GET /events`."""
    router = APIRouter(tags=["events"])

    @router.get("/events", responses=ANSWERS, response_class=StreamingResponse)
    async def stream(
        start: Annotated[
            str | None, Query(alias="from", pattern=POSITION, description="a position; changes above it")
        ] = None,
        last_event_id: Annotated[str | None, Header(pattern=POSITION, description="the same, and goes first")] = None,
        table: Annotated[str | None, Query(pattern=NAME, max_length=128)] = None,
        user_id: Annotated[str | None, Query(max_length=1000, description="of the column [tables] user")] = None,
        vectors: Annotated[bool, Query(description="with the vector column")] = False,
        seconds: Annotated[float | None, Query(gt=0, le=86_400, description="the stream ends after so long")] = None,
    ) -> Stream:
        """Changes, live. Without a position: from now on."""
        wanted = _wanted(config, feed, table, user_id, vectors)
        if not feed.claim():
            busy = f"{config.gateway.event_clients} clients listen already → come back later, or raise event_clients"
            raise HTTPException(503, busy, headers={"Retry-After": str(AGAIN_SECONDS)})
        try:
            ring = await feed.ring()
            position = last_event_id or start
            after = ring.top if position is None else position.encode()
            starts = await feed.begin(ring, after, REACH_SECONDS if seconds is None else seconds)
        except CutError as error:
            feed.release()
            raise HTTPException(410, str(error)) from error
        except BaseException:
            feed.release()
            raise
        ends_at = None if seconds is None else time.monotonic() + seconds
        return Stream(_Client(feed, ring, wanted, after, ends_at).events(starts), feed)

    return router


def _wanted(config: Config, feed: Feed, table: str | None, user: str | None, vectors: bool) -> Wanted:
    """Raises HTTPException 403 for what nobody may see, ConfigError for a table without users."""
    if not config.gateway.event_tables:
        raise HTTPException(403, CLOSED)
    if table is not None and config.kafka.table_topic(*table.split(".", 1)) not in feed.topics:
        raise HTTPException(403, f"events of {table} are not shown here → add it to [gateway] event_tables")
    users = {name: settings.user for name, settings in config.tables.items() if settings.user}
    if user is not None and table is not None and table not in users:
        raise ConfigError(f"{table} has no column of users", hint=f'set tables."{table}".user = "<column>"')
    hidden = {} if vectors else {name: made.vector for name, made in config.tables.items() if made.vector}
    return Wanted(None if table is None else frozenset({table}), user, users, hidden)


class _Client:
    """One client's stream. `after` is what it has: everything up to there."""

    def __init__(self, feed: Feed, ring: Ring, wanted: Wanted, after: bytes, ends_at: float | None) -> None:
        self._feed, self._ring, self._wanted, self._after = feed, ring, wanted, after
        self._ends_at = ends_at

    async def events(self, starts: Mapping[Partition, int] | None) -> AsyncGenerator[bytes, None]:
        """All of it, `end` included."""
        yield b"retry: %d\n\n" % AGAIN_MS
        yield self._beat()
        try:
            if starts is not None:
                async with aclosing(self._past(starts)) as past:
                    async for some in past:
                        yield some
            async with aclosing(self._live()) as live:
                async for some in live:
                    yield some
            reason = "the time asked for is over" if self._late else self._ring.closed or SLOW
        except (KafkaError, CdcError) as error:
            LOG.warning("a client's events ended", reason=str(error))
            reason = f"the topics cannot be read: {type(error).__name__}"
        yield self._end(reason)

    async def _past(self, starts: Mapping[Partition, int]) -> AsyncGenerator[bytes, None]:
        """What the ring does not hold."""
        async with aclosing(self._feed.past(self._ring, self._after, starts)) as found:
            async for some in found:
                for start in range(0, len(some.changes), SOME):
                    if self._late:
                        return
                    if made := self._shown(some.changes[start : start + SOME]):
                        yield made
                self._after = some.reached

    async def _live(self) -> AsyncGenerator[bytes, None]:
        """Until the ring is closed, or has let go of what comes next."""
        while not self._late and (some := self._ring.since(self._after, SOME)) is not None:
            if some:
                if made := self._shown(some):
                    yield made
                continue
            self._after = max(self._after, self._ring.top)
            if self._ring.closed is not None:
                return
            try:
                async with asyncio.timeout(self._patience()):
                    await self._ring.beyond(self._after)
            except TimeoutError:
                yield self._beat()

    def _shown(self, some: Sequence[Change]) -> bytes:
        found = b"".join(made for change in some if (made := shown(change, self._wanted)) is not None)
        self._after = some[-1].position
        return found

    def _patience(self) -> float:
        left = BEAT_SECONDS if self._ends_at is None else self._ends_at - time.monotonic()
        return max(0.0, min(BEAT_SECONDS, left))

    @property
    def _late(self) -> bool:
        return self._ends_at is not None and time.monotonic() >= self._ends_at

    def _beat(self) -> bytes:
        """A comment, and the id of where this client is: browsers keep it although no event follows."""
        return b": nothing new\nid: %s\n\n" % self._after

    def _end(self, reason: str) -> bytes:
        data = {"reason": reason, "resume": self._after.decode()}
        return frame(b"end", json.dumps(data).encode(), self._after)
