"""Records a store cannot take: told, per key, with the reason; others go on; mended by a newer record or a redrive."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from prometheus_client import REGISTRY

from cdc.config import Config
from cdc.embedded import Endpoints
from cdc.envelope import POSITION_HEADER, TRUNCATE_KEY, VERSION_HEADER, encode_floats
from cdc.position import Position
from consumers.dead_letters import DeadLetters
from consumers.faiss import FaissStore
from consumers.letters import OpenLetters, read_dead_letters, read_entries
from consumers.rebuild import rebuild
from consumers.redis import RedisStore
from consumers.runtime import Runtime
from consumers.store import Record, Rejected
from tests.command_line import CommandLine
from tests.pipeline import DIMENSION, config_of, settings
from tests.topic_writer import TopicWriter
from tests.waiting import until

TABLE = "public.memories"

np = pytest.importorskip("numpy")


def vector(number: int, size: int = DIMENSION) -> str:
    return encode_floats(np.full(size, number, dtype=np.float32))


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": number, "content": f"text {number}", "embedding": vector(number), **changes}


@contextlib.asynccontextmanager
async def running(config: Config, name: str) -> AsyncIterator[tuple[Runtime, Any]]:
    """A consumer of one store; stopped, not killed, at the end."""
    store: Any = RedisStore(config) if name == "redis" else FaissStore(config)
    runtime = Runtime(config, store, exclusive=name == "faiss", counts=store, tables=(TABLE,), check_seconds=0.2)
    task = asyncio.ensure_future(runtime.run())
    try:
        await until(lambda: task.done() or runtime.partitions.placed, "a store opened and partitions in place")
        yield runtime, store
    finally:
        runtime.stop()
        await task


@pytest.fixture
def config(servers: Endpoints, tmp_path: Path) -> Config:
    return config_of(servers, servers.postgres_dsn, tmp_path)


@pytest.fixture
async def topics(config: Config) -> AsyncIterator[TopicWriter]:
    async with TopicWriter(config) as writer:
        await writer.create(TABLE)
        yield writer


async def keys_of(store: Any) -> set[int]:
    return {json.loads(key)["id"] async for key, _position in store.scan("public", "memories")}


def open_letters(name: str) -> float | None:
    return REGISTRY.get_sample_value("cdc_store_open_letters", {"store": name})


async def open_now(config: Config, name: str) -> OpenLetters:
    """What the topic says is open."""
    found = OpenLetters()
    async for entry in read_entries(config, name):
        found.add(entry)
    return found


def in_redis(config: Config, number: int) -> dict[str, str]:
    with redis.Redis.from_url(config.redis.url) as client:
        held = client.hgetall(f"memories:{number}")
    return {name.decode(): value.decode(errors="replace") for name, value in held.items()}


async def unsound(topics: TopicWriter, number: int) -> None:
    """Bytes that are no change event."""
    item = topics.item(TABLE, "u", {"id": number}, topics.next_position())
    await topics.write(TABLE, [(item[0], b'\xff{"op":"u"', item[2])])


async def without_row(topics: TopicWriter, number: int) -> None:
    item = topics.item(TABLE, "u", {"id": number}, topics.next_position())
    await topics.write(TABLE, [(item[0], b'{"op":"u","source":{"ts_us":1},"after":null}', item[2])])


async def odd_op(topics: TopicWriter, number: int) -> None:
    await topics.put(TABLE, [row(number)], op="x")


async def torn_vector(topics: TopicWriter, number: int) -> None:
    await topics.put(TABLE, [row(number, embedding="f32:AAA")], op="u")


async def other_dimension(topics: TopicWriter, number: int) -> None:
    await topics.put(TABLE, [row(number, embedding=vector(number, DIMENSION + 1))], op="u")


async def reserved_column(topics: TopicWriter, number: int) -> None:
    await topics.put(TABLE, [row(number, _pos="mine")], op="u")


Poison = Callable[[TopicWriter, int], Any]
POISONS: dict[str, dict[str, Poison]] = {
    "redis": {"decode": unsound, "op": odd_op, "vector": torn_vector, "reserved": reserved_column},
    "faiss": {"undecodable": unsound, "dimension": other_dimension},
}


@pytest.mark.parametrize("name", ["redis", "faiss"])
async def test_a_bad_record_parks_its_key_and_nobody_else(config: Config, topics: TopicWriter, name: str) -> None:
    """Rows 101… are good, then bad, then good again; the other rows go on all the while."""
    poisons = [*POISONS[name].items(), ("decode" if name == "redis" else "undecodable", without_row)]
    numbers = range(101, 101 + len(poisons))
    await topics.put(TABLE, [row(number) for number in numbers])
    async with running(config, name) as (_runtime, store):
        await until(lambda: _holds(store, set(numbers)), "the good rows")
        for number, (_reason, poison) in zip(numbers, poisons, strict=True):
            await poison(topics, number)
            await topics.put(TABLE, [row(10 * (number - 101) + good) for good in range(1, 11)])
        others = {10 * at + good for at in range(len(poisons)) for good in range(1, 11)}
        # what is outdated is not found by a search, and is marked where it can be read by key
        await until(lambda: _holds(store, others | (set(numbers) if name == "redis" else set())), "the others")
        await until(lambda: open_letters(name) == len(poisons), "every letter shown")
        letters = {json.loads(letter.key or b"")["id"]: letter for letter in await open_now(config, name)}
        assert {number: letter.reason for number, letter in letters.items()} == {
            number: reason for number, (reason, _poison) in zip(numbers, poisons, strict=True)
        }
        if name == "redis":
            for number, letter in letters.items():
                assert in_redis(config, number)["_stale"] == f"{letter.position.decode()} {letter.reason}"
        await topics.put(TABLE, [row(number, content="mended") for number in numbers], op="u")
        await until(lambda: _holds(store, others | set(numbers)), "all rows")
        await until(lambda: open_letters(name) == 0, "no letter open")
        assert not list(await open_now(config, name))
        if name == "redis":
            assert all("_stale" not in in_redis(config, number) for number in numbers)
            assert in_redis(config, numbers[0])["content"] == "mended"


async def _holds(store: Any, numbers: set[int]) -> bool:
    return await keys_of(store) == numbers


@pytest.mark.parametrize("name", ["redis", "faiss"])
async def test_what_cannot_be_ordered_is_set_aside(config: Config, topics: TopicWriter, name: str) -> None:
    """A position of letters would outrank all others for ever; a marker without its position empties a table or not."""
    key, value, position = topics.item(TABLE, "c", row(1), topics.next_position())
    sound = (VERSION_HEADER, b'{"a":1}')
    await topics.raw(TABLE, key, value, [(POSITION_HEADER, b"z" * 32), sound])
    await topics.raw(TABLE, key, value, [(POSITION_HEADER, b"+" + b"0" * 31), sound])
    await topics.raw(TABLE, key, value, [(POSITION_HEADER, position.encode()), (VERSION_HEADER, b"[1]")])
    await topics.raw(TABLE, key, value, [sound])
    await topics.raw(TABLE, TRUNCATE_KEY, value, [(POSITION_HEADER, position.encode()), sound])
    await topics.raw(TABLE, TRUNCATE_KEY, None, [(POSITION_HEADER, position.encode()), sound])
    await topics.raw(TABLE, key, value, [("extra", b""), (POSITION_HEADER, position.encode()), sound])  # this one may
    await topics.put(TABLE, [row(2)])
    async with running(config, name) as (_runtime, store):
        await until(lambda: _holds(store, {1, 2}), "what is in order")
        await until(lambda: open_letters(name) == 6, "six letters")
    assert [letter.reason for letter in await open_now(config, name)] == ["foreign"] * 6


async def test_letters_survive_a_restart_and_are_counted_once(config: Config, topics: TopicWriter) -> None:
    await topics.put(TABLE, [row(1), row(2)])
    await unsound(topics, 1)
    async with running(config, "redis"):
        await until(lambda: open_letters("redis") == 1, "one letter")
    await topics.foreign_letter(b"not a letter", b"\xff")
    with redis.Redis.from_url(config.redis.url) as client:
        client.flushdb()  # so that all is replayed, the bad record too
    async with running(config, "redis") as (_runtime, store):
        await until(lambda: _holds(store, {1, 2}), "the replay")
        await until(lambda: _written(config, 2), "the letter a second time")
        await until(lambda: open_letters("redis") == 1, "still one letter")
        await topics.delete(TABLE, [1])
        await until(lambda: open_letters("redis") == 0, "settled by the delete")


async def _written(config: Config, count: int) -> bool:
    return len([letter async for letter in read_dead_letters(config, "redis")]) == count


async def test_a_closing_that_was_lost_is_made_up_for(config: Config, topics: TopicWriter) -> None:
    """The consumer died between applying the newer record and noting it: the next one looks into the store."""
    await topics.put(TABLE, [row(1)])
    await unsound(topics, 1)
    async with running(config, "redis"):
        await until(lambda: open_letters("redis") == 1, "one letter")
    [letter] = await open_now(config, "redis")
    await topics.put(TABLE, [row(1, content="newer")], op="u")
    async with running(config, "redis"):
        await until(lambda: open_letters("redis") == 0, "settled")
    await _again(config, letter)
    async with running(config, "redis"):
        await until(lambda: _closed(config, letter.id), "settled once more")


async def test_a_letter_that_a_rebuild_has_outrun(config: Config, topics: TopicWriter) -> None:
    """The new store holds a newer record of the key, which the consumer will never see pass."""
    await topics.put(TABLE, [row(1), row(2)])
    await unsound(topics, 1)
    async with running(config, "redis") as (runtime, store):
        await until(lambda: open_letters("redis") == 1, "one letter")
        async with runtime._working:  # the consumer stands meanwhile
            await topics.put(TABLE, [row(1, content="newer")], op="u")
            beside = RedisStore(config)
            report = await rebuild(config, beside, tables=(TABLE,))
            await beside.close()
            assert report.swapped
        await until(lambda: open_letters("redis") == 0, "compared with the store that is there now")
        assert await keys_of(store) == {1, 2}
    assert in_redis(config, 1)["content"] == "newer"


async def _again(config: Config, letter: Any) -> None:
    """Opens a letter as if nothing had been noted of its end."""
    record = Record(letter.key, b"{}", letter.position, letter.vector, letter.partition, letter.offset)
    letters = DeadLetters(config, letter.store)
    await letters.add(letter.topic, [Rejected(record, letter.reason, letter.message)])
    await letters.close()


async def _closed(config: Config, id: str) -> bool:
    return (await open_now(config, "redis")).get(id) is None


async def test_a_redrive_never_brings_back_what_was_deleted(config: Config, topics: TopicWriter) -> None:
    """Also when the store has forgotten the delete: the topic has not."""
    await topics.put(TABLE, [row(1), row(2)])
    with redis.Redis.from_url(config.redis.url) as client:
        client.set("memories:3", "not ours")
        position = await topics.put(TABLE, [row(3)])
        async with running(config, "redis") as (_runtime, store):
            await until(lambda: open_letters("redis") == 1, "one letter")
            [letter] = await open_now(config, "redis")
            assert (letter.reason, letter.position) == ("foreign", position.encode())
            client.delete("memories:3")
            await topics.delete(TABLE, [3])
            await until(lambda: open_letters("redis") == 0, "settled by the delete")
            client.delete(f"{config.redis.namespace}tomb:memories:3")
            await _again(config, letter)
            await until(lambda: open_letters("redis") == 1, "open again")
            letters = DeadLetters(config, "redis")
            await letters.request([letter])
            await letters.close()
            await until(lambda: _closed(config, letter.id), "answered")
            assert await keys_of(store) == {1, 2}
            assert in_redis(config, 3) == {}


async def test_the_command_lists_and_redrives(servers: Endpoints, tmp_path: Path) -> None:
    data = settings(servers, servers.postgres_dsn, tmp_path)
    config = config_of(servers, servers.postgres_dsn, tmp_path, **data)
    command = CommandLine(tmp_path, data)
    assert (await asyncio.to_thread(command.json, "dlq", "list", "redis"))["letters"] == []
    async with TopicWriter(config) as topics:
        await topics.create(TABLE)
        with redis.Redis.from_url(config.redis.url) as client:
            client.set("memories:3", "not ours")
            await topics.put(TABLE, [row(1, content="secret"), row(3, content="secret")])
            await odd_op(topics, 1)
            await topics.foreign(TABLE, b"strange", b"not json")
            async with running(config, "redis"):
                await until(lambda: open_letters("redis") == 3, "three letters")
                listed = await asyncio.to_thread(command.json, "dlq", "list", "redis", code=1)
                assert {(x["key"], x["reason"], x["state"]) for x in listed["letters"]} == {
                    ('{"id":3}', "foreign", "parked"), ('{"id":1}', "op", "parked"), ("strange", "foreign", "open"),
                }  # fmt: skip
                assert "secret" not in json.dumps(listed)
                assert all(x["position"] for x in listed["letters"] if x["key"] != "strange")
                client.delete("memories:3")
                done = await asyncio.to_thread(command.json, "dlq", "redrive", "redis", "--all", code=1)
                results = {x["key"]: x["result"] for x in done["letters"]}
                assert results['{"id":3}'] == "redriven"
                assert results['{"id":1}'].startswith("refused again (op)")
                assert "dlq discard" in results["strange"]
                assert in_redis(config, 3)["content"] == "secret"
                await topics.put(TABLE, [row(1)], op="u")
                arguments = "dlq", "discard", "redis", "--reason", "foreign"
                await asyncio.to_thread(command.json, *arguments)
                await until(lambda: open_letters("redis") == 0, "nothing open")
            shown = await asyncio.to_thread(command.run, "dlq", "list", "redis", "--show-values")
            assert shown.returncode == 0
            assert "secret" in shown.stdout
            states = {"redriven", "superseded", "discarded"}
            assert states <= set(shown.stdout.replace("│", " ").split())
    assert "--all" in await asyncio.to_thread(command.refusal, "dlq", "redrive", "redis")


def test_positions_are_hexadecimal() -> None:
    """What `int` takes beside digits would sort elsewhere than it counts."""
    from cdc.errors import DecodeError
    from cdc.position import decode_position

    assert decode_position(Position(1, 2, 3).encode()) == Position(1, 2, 3)
    for text in (b"z" * 32, b"+" + b"0" * 31, b"0_0" + b"0" * 29, b" " + b"0" * 31, "F" * 32):
        with pytest.raises(DecodeError):
            decode_position(text)
