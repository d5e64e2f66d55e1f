"""Events as a client gets them: from a served application before topics that a test writes itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError
from fastapi import FastAPI

from cdc.config import Config
from cdc.position import Position
from consumers.gateway.events import events
from consumers.gateway.feed import Feed
from consumers.gateway.refusals import HANDLERS
from consumers.gateway.server import GatewayServer
from consumers.gateway.timeline import Timeline
from tests.topic_writer import Item, TopicWriter
from tests.waiting import until

Written = dict[str, Sequence[Item]]  # by table


class Event(dict[str, Any]):
    """The data of one event; `kind` and `id` as they were sent."""

    kind = ""
    id = ""


class Topics(TopicWriter):
    """Writes progress in the same transaction, as the reader does; keeps what it wrote, in order."""

    async def __aenter__(self) -> Topics:
        await super().__aenter__()
        await self._create(self._config.kafka.progress_topic, 1)
        return self

    async def chunk(self, written: Written, *, abort: bool = False) -> bytes:
        """One Kafka transaction: records of several tables, progress and a heartbeat. Its last position."""
        last = max(position for items in written.values() for _key, _value, position in items)
        try:
            async with self._producer.transaction():
                for table, items in written.items():
                    topic = self._config.kafka.table_topic(*table.split("."))
                    for key, value, position in items:
                        headers = [("cdc.pos", position.encode()), ("cdc.ver", b'{"memories":1}')]
                        await self._producer.send(topic, value, key=key, headers=headers)
                await self._producer.flush()
                if abort:
                    raise _AbortError
                await self.say(last)
        except _AbortError:
            return b""
        return last.encode()

    async def say(self, reached: Position) -> None:
        """Progress, within the running transaction."""
        progress = {"source": "x", "epoch": reached.epoch, "commit_lsn": reached.commit_lsn, "ordinal": reached.ordinal}
        name = self._config.source_name.encode()
        await self._producer.send_and_wait(self._config.kafka.progress_topic, json.dumps(progress).encode(), key=name)

    async def rows(self, table: str, ids: Sequence[int], **columns: Any) -> list[bytes]:
        """One chunk of rows; their positions."""
        lsn = self.next_position().commit_lsn
        items = [
            self.item(table, "c", {"id": n, "content": f"row {n}", **columns}, Position(1, lsn, place + 1))
            for place, n in enumerate(ids)
        ]
        await self.chunk({table: items})
        return [position.encode() for _key, _value, position in items]

    async def cut(self, table: str) -> None:
        """Deletes every record of a table's topic, as `kafka-delete-records` does where retention is allowed."""
        topic = self._config.kafka.table_topic(*table.split("."))
        ends = (await self.ends())[topic]
        await self._admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"cleanup.policy": "delete"})])

        async def cut_now() -> bool:
            wanted = {TopicPartition(topic, n): RecordsToDelete(end) for n, end in enumerate(ends)}
            try:
                await self._admin.delete_records(wanted)
            except KafkaError:
                return False  # the policy has not come through yet
            return True

        await until(cut_now, "records deleted")


class _AbortError(Exception):
    """Ends a transaction."""


@asynccontextmanager
async def served(config: Config) -> AsyncIterator[httpx.AsyncClient]:
    """The events alone, in this loop."""
    timeline = Timeline(config)
    feed = Feed(config, timeline)
    app = FastAPI()
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.include_router(events(config, feed))
    listening = asyncio.ensure_future(timeline.listen())
    try:
        async with GatewayServer(app, "127.0.0.1", 0) as server, feed:
            address = f"http://127.0.0.1:{server.port}"
            async with httpx.AsyncClient(base_url=address, timeout=40, trust_env=False) as client:
                yield client
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


class Listener:
    """One open stream: `next` waits for what comes, `position` is what a browser would come back with."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()
        self.position = ""
        self.ended: dict[str, Any] | None = None

    async def next(self) -> Event:
        """The next event; comments are passed over."""
        event = Event()
        async for line in self._lines:
            name, _colon, value = line.partition(": ")
            if name == "id":
                self.position = event.id = value
            elif name == "event":
                event.kind = value
            elif name == "data":
                event.update(json.loads(value))
            elif not line and event.kind:
                self.ended = dict(event) if event.kind == "end" else None
                return event
        raise EOFError(f"the stream ended: {self.ended}")

    async def some(self, number: int) -> list[Event]:
        """So many changes."""
        found = [await self.next() for _ in range(number)]
        assert all(event.kind == "change" for event in found), found
        return found

    async def placed(self) -> None:
        """Returns once the stream has told where it begins."""
        async for line in self._lines:
            if line.startswith("id: "):
                self.position = line[4:]
                return


@asynccontextmanager
async def listening(client: httpx.AsyncClient, **asked: Any) -> AsyncIterator[Listener]:
    """A stream that has begun; `last_event_id` goes as the header."""
    last = asked.pop("last_event_id", None)
    headers = {} if last is None else {"Last-Event-ID": last}
    query = {"from" if name == "start" else name: value for name, value in asked.items()}
    async with client.stream("GET", "/events", params=query, headers=headers) as response:
        assert response.status_code == 200, (await response.aread(), response.status_code)
        assert response.headers["content-type"].startswith("text/event-stream")
        listener = Listener(response)
        await listener.placed()
        yield listener
