"""`GET /events` on a real Kafka: live and from a position, in order, without hole or double; refusals; slow clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cdc.config import Config, parse
from cdc.embedded import Endpoints, Servers
from cdc.position import Position, decode_position
from consumers.gateway import ring
from tests.chance import seeded
from tests.gateway.event_rig import Event, Listener, Topics, listening, served
from tests.pipeline import settings
from tests.waiting import until

TABLE, OTHER = "public.memories", "public.notes"
ZERO = "0" * 32


def config_for(servers: Endpoints, folder: Path, **gateway: Any) -> Config:
    """No PostgreSQL is asked; the topics are the test's own."""
    tables = {TABLE: {"vector": "embedding", "user": "user_id"}}
    return parse(settings(servers, servers.postgres_dsn, folder, tables=tables, gateway=gateway))


@asynccontextmanager
async def events_of(config: Config) -> AsyncIterator[tuple[Topics, httpx.AsyncClient]]:
    """Topics with one row each, and who serves them."""
    async with Topics(config) as topics:
        await topics.create(TABLE, OTHER, partitions=3)
        await topics.rows(TABLE, [0])
        await topics.heartbeat()
        async with served(config) as client:
            yield topics, client


@pytest.fixture
def config(servers: Endpoints, tmp_path: Path) -> Config:
    return config_for(servers, tmp_path)


def ids(events: list[Event]) -> list[Any]:
    return [event["key"]["id"] for event in events]


async def test_live_and_again_from_where_it_was(config: Config) -> None:
    async with events_of(config) as (topics, client):
        async with listening(client) as live:
            positions = await topics.rows(TABLE, [1, 2, 3, 4, 5])
            found = await live.some(5)
            assert ids(found) == [1, 2, 3, 4, 5]
            assert [event.id.encode() for event in found] == positions
            assert found[0]["row"] == {"id": 1, "content": "row 1"}
            assert (found[0]["table"], found[0]["op"], found[0]["version"]) == (TABLE, "c", {"memories": 1})
            await topics.rows(TABLE, [6, 7])
            assert ids(await live.some(1)) == [6]
        await topics.rows(TABLE, [8])
        async with listening(client, last_event_id=live.position) as again:
            assert ids(await again.some(2)) == [7, 8]
            await topics.rows(OTHER, [9])
            assert ids(await again.some(1)) == [9]
        async with listening(client, start=ZERO, table=TABLE) as all_of_it:
            assert ids(await all_of_it.some(9)) == list(range(9))
        async with listening(client, start=ZERO, last_event_id=found[4].id) as header_first:
            assert ids(await header_first.some(3)) == [6, 7, 8]


async def test_nothing_is_missed_or_seen_twice_whenever_one_comes_back(config: Config) -> None:
    """One writer, chunks over both tables and all partitions, aborted ones among them; a client that goes and comes
    back at random, from where it was, into the ring or from before it."""
    chance = seeded("events")
    expected: list[bytes] = []
    done = asyncio.Event()

    async def write(topics: Topics) -> None:
        for number in range(60):
            lsn = topics.next_position().commit_lsn
            items = [
                (chance.choice((TABLE, OTHER)), Position(1, lsn, place + 1)) for place in range(chance.randint(1, 40))
            ]
            made = {
                table: [
                    topics.item(table, "c", {"id": chance.randint(0, 10_000)}, position)
                    for where, position in items
                    if where == table
                ]
                for table in {where for where, _position in items}
            }
            abort = chance.random() < 0.2
            await topics.chunk(made, abort=abort)
            if not abort:
                expected.extend(position.encode() for _table, position in items)
            if number % 7 == 0:
                await topics.heartbeat()
        done.set()

    async with events_of(config) as (topics, client):
        async with listening(client) as first:
            position = first.position
        seen: list[bytes] = []
        writing = asyncio.create_task(write(topics))
        async with AsyncExitStack() as stack:
            if chance.random() < 0.5:  # somebody else keeps the ring alive, or nobody does
                await stack.enter_async_context(listening(client))
            while not (done.is_set() and len(seen) >= len(expected)):
                async with listening(client, last_event_id=position) as some:
                    left = len(expected) - len(seen) if done.is_set() else chance.randint(1, 200)
                    for _ in range(max(1, left)):
                        if done.is_set() and len(seen) >= len(expected):
                            break
                        event = await asyncio.wait_for(some.next(), 40)
                        seen.append(event.id.encode())
                    position = some.position
        await writing
        assert seen == expected


async def test_deletes_markers_aborts_vectors_and_users(config: Config) -> None:
    async with events_of(config) as (topics, client), AsyncExitStack() as stack:
        live = await stack.enter_async_context(listening(client))
        with_vectors = await stack.enter_async_context(listening(client, vectors=True, table=TABLE))
        anns = await stack.enter_async_context(listening(client, user_id="ann"))
        await topics.chunk({TABLE: [topics.item(TABLE, "c", {"id": 99}, topics.next_position(1))]}, abort=True)
        lsn = topics.next_position().commit_lsn
        ann = {"id": 1, "user_id": "ann", "embedding": "f32:AACAPw=="}
        await topics.chunk(
            {
                TABLE: [
                    topics.item(TABLE, "c", ann, Position(1, lsn, 1)),
                    topics.item(TABLE, "r", {"id": 2, "user_id": "bob"}, Position(1, lsn, 2), snapshot="true"),
                    *deleted(topics, 3, Position(1, lsn, 3)),
                    (b'{"id":4}', None, Position(1, lsn, 4)),  # compaction took the delete before it
                ]
            }
        )
        found = await live.some(4)
        assert [(event["op"], event["key"]["id"]) for event in found] == [("c", 1), ("r", 2), ("d", 3), ("d", 4)]
        assert found[0]["row"] == {"id": 1, "user_id": "ann"}
        assert "row" not in found[2]
        assert (await with_vectors.next())["row"] == ann
        assert ids(await anns.some(3)) == [1, 3, 4]  # deletes name no user
        await topics.truncate(TABLE)
        await topics.rows(TABLE, [5])
        marker, row = await live.some(2)
        assert (marker["op"], marker["marker"], len(marker["below"])) == ("t", "truncate", 32)  # once, of 3 partitions
        assert row["key"] == {"id": 5}


def deleted(topics: Topics, key: int, position: Position) -> list[Any]:
    """The delete and its tombstone."""
    name, value, _position = topics.item(TABLE, "d", {"id": key}, position)
    return [(name, value, position), (name, None, position)]


async def test_a_table_that_comes_later(config: Config) -> None:
    async with events_of(config) as (topics, client), listening(client) as live:
        await topics.create("public.later", partitions=2)
        await topics.rows("public.later", [1, 2])
        await topics.rows(TABLE, [3])
        found = await live.some(3)
        assert [(event["table"], event["key"]["id"]) for event in found] == [
            ("public.later", 1), ("public.later", 2), (TABLE, 3),
        ]  # fmt: skip


async def test_a_client_that_is_too_slow_is_told_and_goes_on(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others get everything; it gets the rest when it comes back."""
    monkeypatch.setattr(ring.Ring.__init__, "__defaults__", (200, 1 << 30))
    text = "x" * 20_000  # so that sockets are full at once
    async with events_of(config) as (topics, client), AsyncExitStack() as stack:
        slow = await stack.enter_async_context(listening(client))
        quick = await stack.enter_async_context(listening(client))
        reading = asyncio.create_task(quick.some(2000))
        for start in range(1, 2001, 50):
            await topics.rows(TABLE, range(start, start + 50), content=text)
        assert ids(await reading) == list(range(1, 2001))
        got = await until_the_end(slow)
        end = got.pop()
        assert "too slow" in end["reason"]
        assert end["resume"] == got[-1].id == slow.position
        async with listening(client, last_event_id=slow.position) as again:
            rest = await again.some(2000 - len(got))
        assert ids(got + rest) == list(range(1, 2001))


async def until_the_end(listener: Listener) -> list[Event]:
    """Everything, the last event included."""
    found = [await listener.next()]
    while found[-1].kind != "end":
        found.append(await listener.next())
    return found


async def test_what_is_refused(servers: Endpoints, tmp_path: Path) -> None:
    config = config_for(servers, tmp_path, event_clients=1, event_tables=[TABLE])
    async with events_of(config) as (topics, client):
        for query, code in {
            "from=nonsense": 422, "from=" + "f" * 32: 422, "table=x": 422, "seconds=0": 422, f"table={OTHER}": 403,
        }.items():  # fmt: skip
            answer = await client.get(f"/events?{query}")
            assert (query, answer.status_code) == (query, code)
            assert answer.json()["detail"]
        assert (await client.get("/events", headers={"Last-Event-ID": "x"})).status_code == 422
        async with listening(client) as live:
            busy = await client.get("/events")
            assert (busy.status_code, busy.headers["retry-after"]) == (503, "5")
            await topics.rows(OTHER, [1])  # not shown here
            await topics.rows(TABLE, [2])
            assert (await live.next())["key"] == {"id": 2}

        async def free_again() -> bool:
            return "the time asked for is over" in (await client.get("/events", params={"seconds": 0.3})).text

        await until(free_again, "the place given back, and a stream that ends by itself")
    closed = config_for(servers, tmp_path, event_tables=[])
    async with served(closed) as client:
        answer = await client.get("/events")
        assert (answer.status_code, "event_tables" in answer.json()["detail"]) == (403, True)


async def test_a_position_that_the_topics_no_longer_keep(config: Config) -> None:
    async with events_of(config) as (topics, client):
        await topics.rows(TABLE, range(1, 50))
        async with listening(client, start=ZERO) as before:
            assert len(await before.some(50)) == 50
        await topics.cut(TABLE)
        answer = await client.get("/events", params={"from": ZERO})
        assert (answer.status_code, "begins behind" in answer.json()["detail"]) == (410, True)
        for number in (50, 51):  # two heartbeats behind the cut: what is above the second is all there
            positions = await topics.rows(TABLE, [number])
            topics.position = decode_position(positions[-1])
            await topics.heartbeat()
        async with listening(client, start=positions[-1].decode()) as live:
            await topics.rows(TABLE, [77])
            assert ids(await live.some(1)) == [77]


async def test_kafka_goes_and_comes_back(servers: Endpoints, tmp_path: Path) -> None:
    """The stream stays, and goes on where it was."""
    own = Servers(tmp_path / "kafka", only=("kafka",), report=print)
    try:
        data = settings(servers, servers.postgres_dsn, tmp_path)
        data["kafka"]["bootstrap"] = own.start().kafka_bootstrap
        async with events_of(parse(data)) as (topics, client), listening(client) as live:
            await topics.rows(TABLE, [1])
            assert ids(await live.some(1)) == [1]
            await asyncio.to_thread(own["kafka"].stop)
            assert (await client.get("/events", params={"seconds": 1})).status_code in (200, 503)
            await asyncio.to_thread(own["kafka"].start)
            await topics.rows(TABLE, [2, 3])
            assert ids(await live.some(2)) == [2, 3]
    finally:
        own.erase()


async def test_streams_end_when_the_gateway_stops(config: Config) -> None:
    async with AsyncExitStack() as stack:
        listener, stop = await stack.enter_async_context(_stopping(config))
        stop.set()
        end = await asyncio.wait_for(until_the_end(listener), 10)
        assert end[-1]["reason"] == "the gateway stops"


@asynccontextmanager
async def _stopping(config: Config) -> AsyncIterator[tuple[Listener, asyncio.Event]]:
    """A stream whose server ends when it is told to."""
    stop, begun = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def serve() -> None:
        async with events_of(config) as (_topics, client):
            begun.set_result(client.base_url)
            await stop.wait()

    serving = asyncio.create_task(serve())
    try:
        async with (
            httpx.AsyncClient(base_url=await begun, timeout=40, trust_env=False) as client,
            listening(client) as listener,
        ):
            yield listener, stop
    finally:
        stop.set()
        await serving
