"""The Redis store on a real Redis: versions, tombstones, indexes, exact values, loss, swap, and a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from cdc.config import Config, parse
from cdc.embedded import Servers
from cdc.envelope import TRUNCATE_KEY, encode_floats
from cdc.errors import ConfigError, ConnectError, PreconditionError, StoreError, StoreLost
from cdc.position import Position
from consumers.redis import RedisStore, keys_for
from consumers.store import Applied, Batch, Record, Version

TOPIC = "memories.public.memories"
VECTOR = b'{"memories":5}'
TABLES: dict[str, Any] = {
    "public.memories": {"redis_key": "memory:{id}", "user": "user_id", "recency": "created_at", "vector": "embedding"}
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of this module's own: its tests flush, swap and starve it."""
    own = Servers(tmp_path_factory.mktemp("redis"), only=("redis",), report=print)
    try:
        yield own.start().redis_url
    finally:
        own.erase()


@pytest.fixture
async def redis(url: str) -> AsyncIterator[Redis]:
    """A bare client on an empty server."""
    client = Redis.from_url(url, decode_responses=True)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def store(url: str, redis: Redis) -> AsyncIterator[RedisStore]:
    """Opened, empty."""
    opened = RedisStore(config(url))
    assert await opened.open() == {}
    yield opened
    await opened.close()


def config(url: str, tables: dict[str, Any] | None = None, **redis: Any) -> Config:
    return parse(
        {
            "postgres": {"dsn": "dbname=unused"},
            "kafka": {"bootstrap": "unused:9092"},
            "redis": {"url": url, **redis},
            "tables": TABLES if tables is None else tables,
        }
    )


def at(lsn: int, ordinal: int = 1, epoch: int = 1) -> bytes:
    return Position(epoch, lsn, ordinal).encode()


def change(key: object, lsn: int, row: bytes | dict[str, Any] | None, *, ts_us: int = 1_700_000_000_000_000) -> Record:
    """A record as the reader writes it; `row` None is a delete's event."""
    after = b"null" if row is None else row if isinstance(row, bytes) else msgspec.json.encode(row)
    op = b"d" if row is None else b"u"
    value = (
        b'{"before":null,"after":%b,"source":{"version":"1","name":"memories","db":"d","schema":"public",'
        b'"table":"memories","ts_us":%d,"epoch":1,"lsn":%d,"ordinal":1,"snapshot":"false"},"op":"%b","ts_ms":1}'
    ) % (after, ts_us, lsn, op)
    return Record(encoded_key(key), value, at(lsn), VECTOR, 0, lsn)


def encoded_key(key: object) -> bytes:
    return msgspec.json.encode(key if isinstance(key, dict) else {"id": key})


def tombstone(key: object, lsn: int) -> Record:
    return Record(encoded_key(key), None, at(lsn), VECTOR, 0, lsn)


def batch(*records: Record, table: str = "memories", offset: int = 1) -> Batch:
    return Batch("public", table, f"memories.public.{table}", records, {(f"memories.public.{table}", 0): offset})


def memory(key: object, **columns: Any) -> dict[str, Any]:
    return {"id": key, "user_id": "ann", "created_at": "2025-01-01T00:00:00Z", **columns}


async def test_newer_wins_older_and_equal_are_stale(store: RedisStore, redis: Redis) -> None:
    assert await store.apply(batch(change("a", 5, memory("a", content="five")))) == Applied(upserts=1)
    older = await store.apply(batch(change("a", 4, memory("a", content="four"))))
    equal = await store.apply(batch(change("a", 5, memory("a", content="again"))))
    assert older == equal == Applied(stale=1)
    assert await redis.hget("memory:a", "content") == "five"
    assert await store.apply(batch(change("a", 6, memory("a", content="six")))) == Applied(upserts=1)
    assert await redis.hgetall("memory:a") == {
        "_pos": at(6).decode(),
        "_ver": VECTOR.decode(),
        "_ts": "1700000000000000",
        "id": "a",
        "user_id": "ann",
        "created_at": "2025-01-01T00:00:00Z",
        "content": "six",
    }


async def test_versions_within_one_batch(store: RedisStore, redis: Redis) -> None:
    records = (change("a", 2, memory("a", n=2)), change("a", 1, memory("a", n=1)), change("a", 3, memory("a", n=3)))
    assert await store.apply(batch(*records)) == Applied(upserts=2, stale=1)
    assert await redis.hget("memory:a", "n") == "3"


async def test_delete_keeps_an_old_record_away_and_a_newer_one_returns(store: RedisStore, redis: Redis) -> None:
    await store.apply(batch(change("a", 5, memory("a"))))
    assert await store.apply(batch(change("a", 7, None), tombstone("a", 7))) == Applied(deletes=1)
    assert not await redis.exists("memory:a")
    assert await redis.get("cdc:tomb:memory:a") == at(7).decode() + VECTOR.decode()
    assert 0 < await redis.ttl("cdc:tomb:memory:a") <= store.config.redis.tombstone_seconds
    assert await store.apply(batch(change("a", 6, memory("a")))) == Applied(stale=1)
    assert await store.versions("public", "memories", [b'{"id":"a"}']) == [Version(at(7), VECTOR, deleted=True)]
    assert await store.apply(batch(change("a", 8, memory("a")))) == Applied(upserts=1)
    assert not await redis.exists("cdc:tomb:memory:a")
    assert await store.versions("public", "memories", [b'{"id":"a"}']) == [Version(at(8), VECTOR)]


async def test_a_delete_of_an_unknown_record_is_remembered(store: RedisStore, redis: Redis) -> None:
    assert await store.apply(batch(tombstone("a", 7), change("a", 6, memory("a")))) == Applied(deletes=1, stale=1)
    assert not await redis.exists("memory:a")


async def test_null_and_dropped_columns_vanish(store: RedisStore, redis: Redis) -> None:
    await store.apply(batch(change("a", 1, memory("a", note="x", kind="y", extra="z"))))
    await store.apply(batch(change("a", 2, memory("a", note=None, kind="y"))))
    assert set(await redis.hgetall("memory:a")) == {"_pos", "_ver", "_ts", "id", "user_id", "created_at", "kind"}


async def test_values_are_exact(store: RedisStore, redis: Redis) -> None:
    row = (
        b'{"id":"a","user_id":"ann","created_at":null,"big":123456789012345678901234567890,"int8":-9223372036854775808,'
        b'"price":1.500,"tiny":1e-400,"zero":0,"minus":-0,"yes":true,"no":false,"text":"f32:AAAA","empty":"",'
        b'"array":[1.50,null,"x"],"json":"{\\"a\\": 1.0}","unicode":"\\u00e9\\n"}'
    )
    expected = {
        "big": "123456789012345678901234567890",
        "int8": "-9223372036854775808",
        "price": "1.500",
        "tiny": "1e-400",
        "zero": "0",
        "minus": "-0",
        "yes": "true",
        "no": "false",
        "text": "f32:AAAA",
        "empty": "",
        "array": '[1.50,null,"x"]',
        "json": '{"a": 1.0}',
        "unicode": "é\n",
    }
    await store.apply(batch(change("a", 1, row)))
    held = await redis.hgetall("memory:a")
    assert {name: held.get(name) for name in expected} == expected
    for lsn, left_out in ((2, b'"array":[1.50,null,"x"],'), (3, b'"minus":-0,')):  # the last goes the quick way
        row = row.replace(left_out, b"")
        del expected[left_out.split(b'"')[1].decode()]
        await store.apply(batch(change("a", lsn, row)))
        held = await redis.hgetall("memory:a")
        assert {name: held.get(name) for name in expected} == expected


async def test_only_the_vector_column_is_a_vector(url: str, redis: Redis, store: RedisStore) -> None:
    vector = np.array([1.5, -2.0], dtype="<f4")
    wire = encode_floats(vector)
    double = encode_floats(vector.astype("<f8"), double=True)
    await store.apply(
        batch(
            change("a", 1, memory("a", embedding=wire, text=wire)),
            change("b", 2, memory("b", embedding=double, text=wire, tags=["x"])),
            change("c", 3, memory("c", embedding="no vector", text="t")),
            change("d", 4, memory("d", embedding=None, text="t")),
        )
    )
    async with Redis.from_url(url) as raw:
        for key in ("memory:a", "memory:b"):
            assert await raw.hmget(key, "embedding", "text") == [vector.tobytes(), wire.encode()]
    assert await redis.exists("memory:c") == 0
    assert await redis.hget("memory:d", "embedding") is None
    assert (await store.apply(batch(change("c", 3, memory("c", embedding="f32:?"))))).rejected[0].reason == "vector"


async def test_vectors_can_be_left_out(url: str, redis: Redis) -> None:
    store = RedisStore(config(url, vectors="omit"))
    await store.open()
    await store.apply(batch(change("a", 1, memory("a", embedding=encode_floats(np.ones(2, dtype="<f4"))))))
    assert await redis.hget("memory:a", "embedding") is None
    await store.close()


async def test_keys_are_readable_and_unambiguous(url: str, redis: Redis) -> None:
    tables = {"public.hashed": {"redis_key": "note:{{{tenant}}}:{id}"}}
    store = RedisStore(config(url, tables))
    await store.open()
    keys = [{"tenant": "a:b", "id": "c"}, {"tenant": "a", "id": "b:c"}, {"tenant": "50%", "id": "é"}]
    numbers = [{"id": 7}, {"id": -12345678901234567890}, {"id": "7"}]
    await store.apply(batch(*(change(k, 1, k) for k in keys), table="pairs"))
    await store.apply(batch(*(change(k, 1, k) for k in keys), table="hashed"))
    await store.apply(batch(*(change(k, i, k) for i, k in enumerate(numbers)), table="plain"))
    assert set(await redis.keys("pairs:*")) == {"pairs:a%3Ab:c", "pairs:a:b%3Ac", "pairs:50%25:é"}
    assert set(await redis.keys("note:*")) == {"note:{a%3Ab}:c", "note:{a}:b%3Ac", "note:{50%25}:é"}
    assert set(await redis.keys("plain:*")) == {"plain:7", "plain:-12345678901234567890"}
    for table, expected in (("pairs", keys), ("hashed", keys), ("plain", [numbers[1], numbers[2]])):
        found = {key async for key, _ in store.scan("public", table)}
        assert found == {msgspec.json.encode(key) for key in expected}
        for key in found:
            assert await redis.exists(keys_for(store.config, "public", table, key))
    await store.close()


async def test_key_bytes_come_back_as_they_were(store: RedisStore) -> None:
    odd = rb'{"id":"\u0041\/x"}'
    record = change("unused", 1, memory("A/x"))._replace(key=odd)
    await store.apply(batch(record, change("plain", 2, memory("plain"))))
    assert {key async for key, _ in store.scan("public", "memories")} == {odd, b'{"id":"plain"}'}


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("memory", "name each key column"),
        ("{id}", "our own keys"),
        ("cdc:{id}", "our own keys"),
        ("memory:{id", "no template"),
        ("memory:{id!r}", "no template"),
        ("memory:{other}", "name each key column"),
    ],
)
async def test_a_wrong_template_is_refused(url: str, redis: Redis, template: str, told: str) -> None:
    store = RedisStore(config(url, {"public.memories": {"redis_key": template}}))
    await store.open()
    with pytest.raises(ConfigError, match=told):
        await store.apply(batch(change("a", 1, memory("a"))))
    await store.close()


async def test_two_tables_never_share_keys(url: str, redis: Redis, store: RedisStore) -> None:
    await store.apply(batch(change("a", 1, memory("a"))))
    tables = {
        **TABLES,
        "public.other": {"redis_key": "memory:by_user:{id}"},
        "public.third": {"redis_key": "memory:{k}"},
    }
    for table, key in (("other", {"id": "ann"}), ("third", {"k": "a"})):
        second = RedisStore(config(url, tables))
        await second.open()
        with pytest.raises(StoreError, match="share Redis keys"):
            await second.apply(batch(change(key, 2, key), table=table))
        await second.close()


async def test_a_changed_template_needs_a_rebuild(url: str, redis: Redis, store: RedisStore) -> None:
    await store.apply(batch(change("a", 1, memory("a"))))
    second = RedisStore(config(url, {"public.memories": {"redis_key": "mem:{id}"}}))
    await second.open()
    with pytest.raises(StoreError, match="rebuild"):
        await second.apply(batch(change("a", 2, memory("a"))))
    await second.close()


async def test_reserved_columns_are_refused(store: RedisStore, redis: Redis) -> None:
    """What is held of the row before says that it is outdated."""
    await store.apply(batch(change("a", 1, memory("a"))))
    refused = change("a", 2, memory("a", _pos="x"))
    applied = await store.apply(batch(refused, change("b", 3, memory("b"))))
    assert [(letter.record, letter.reason) for letter in applied.rejected] == [(refused, "reserved")]
    assert await redis.hget("memory:a", "_stale") == f"{refused.position.decode()} reserved"
    assert await redis.hget("memory:b", "_stale") is None
    await store.apply(batch(change("a", 3, memory("a"))))
    assert await redis.hget("memory:a", "_stale") is None


async def test_the_index_moves_and_is_left(store: RedisStore, redis: Redis) -> None:
    await store.apply(
        batch(
            change("a", 1, memory("a", created_at="2025-01-01T00:00:01.000002Z")),
            change("b", 2, memory("b", created_at=None)),
            change("c", 3, memory("c", user_id=None)),
            change("d", 4, memory("d", user_id="x:y %")),
            change("e", 5, memory("e", created_at="infinity")),
        )
    )
    assert await redis.zrange("memory:by_user:ann", 0, -1, withscores=True) == [
        ("memory:b", 1_700_000_000_000_000.0),
        ("memory:a", 1_735_689_601_000_002.0),
        ("memory:e", float("inf")),
    ]
    assert await redis.zrange("memory:by_user:x%3Ay%20%25", 0, -1) == ["memory:d"]
    await store.apply(
        batch(
            change("a", 6, memory("a", user_id="bob")),
            change("d", 7, memory("d", user_id="bob")),
            change("d", 8, memory("d", user_id="eve")),
            change("b", 9, None),
            change("e", 10, memory("e", user_id=None)),
        )
    )
    assert await redis.zrange("memory:by_user:bob", 0, -1) == ["memory:a"]
    assert await redis.zrange("memory:by_user:eve", 0, -1) == ["memory:d"]
    assert await redis.exists("memory:by_user:ann", "memory:by_user:x%3Ay%20%25") == 0


async def test_the_index_keeps_the_newest(url: str, redis: Redis) -> None:
    store = RedisStore(config(url, recency_limit=3))
    await store.open()
    days = [3, 1, 5, 2, 4]
    await store.apply(batch(*(change(f"{d}", d, memory(f"{d}", created_at=f"2025-01-0{d}T00:00:00Z")) for d in days)))
    assert await redis.zrange("memory:by_user:ann", 0, -1) == ["memory:3", "memory:4", "memory:5"]
    assert await store.count("public", "memories") == 5
    await store.close()


async def test_ttl_expires_and_the_count_knows(url: str, redis: Redis) -> None:
    store = RedisStore(config(url, {"public.memories": {"ttl_seconds": 600, "user": "user_id"}}))
    await store.open()
    await store.apply(batch(change("a", 1, memory("a")), change("b", 2, memory("b"))))
    assert 0 < await redis.ttl("memories:a") <= 600
    assert 0 < await redis.ttl("memories:by_user:ann") <= 600
    await redis.pexpireat("memories:a", 1)
    assert await store.count("public", "memories") == 1
    await store.check()  # an expired record is no loss
    await store.close()


async def test_truncate_touches_this_table_only(store: RedisStore, redis: Redis) -> None:
    memories = [change(f"m{i}", i + 1, memory(f"m{i}", created_at=None), ts_us=i) for i in range(1500)]
    await store.apply(batch(*memories))
    await store.apply(batch(change("x", 1, {"id": "x"}), table="memory:by"))  # keys memory:by:…
    await redis.hset("memory:foreign:key", mapping={"_pos": at(1).decode()})
    await redis.hset("memory:stranger", mapping={"name": "x"})
    marker = batch(Record(TRUNCATE_KEY, None, at(1001), VECTOR, 0, 1), offset=77)
    removed = await store.truncate(marker, at(1001))
    assert removed == 1000
    assert await store.count("public", "memories") == 500
    assert await redis.zcard("memory:by_user:ann") == 500
    assert await redis.exists("memory:foreign:key", "memory:stranger", "memory:by:x") == 3
    assert await store.count("public", "memory:by") == 1
    assert (await store.flush())[TOPIC, 0] == 77
    assert await store.apply(batch(change("m1", 2, memory("m1")))) == Applied(stale=1)  # below the floor
    assert await store.apply(batch(change("m1", 1002, memory("m1")))) == Applied(upserts=1)
    assert await store.truncate(marker, at(5)) == 0


async def test_what_is_not_ours_is_left_and_told(store: RedisStore, redis: Redis) -> None:
    await redis.set("memory:a", "a string of another program")
    await redis.hset("memory:b", mapping={"stranger": "1"})
    applied = await store.apply(batch(change("a", 1, memory("a")), change("b", 2, memory("b"))))
    assert [r.reason for r in applied.rejected] == ["foreign"]
    assert applied.upserts == 1
    assert await redis.get("memory:a") == "a string of another program"
    assert await redis.hget("memory:b", "stranger") is None  # the row replaces the whole hash
    assert await store.versions("public", "memories", [b'{"id":"a"}', b'{"id":"z"}']) == [None, None]


async def test_bad_records_are_rejected_by_name(store: RedisStore) -> None:
    good = change("a", 1, memory("a"))
    applied = await store.apply(
        batch(good._replace(value=b"{"), good._replace(key=b"[]"), good._replace(key=b'{"k":1}'), good)
    )
    assert sorted(r.reason for r in applied.rejected) == ["decode", "key", "key"]
    assert applied.upserts == 1
    only_bad = await store.apply(batch(good._replace(key=b"nothing"), table="unseen", offset=5))
    assert [r.reason for r in only_bad.rejected] == ["key"]
    assert ("memories.public.unseen", 0) not in await store.flush()  # the letters first
    await store.apply(batch(table="unseen", offset=5))
    assert (await store.flush())["memories.public.unseen", 0] == 5


async def test_open_returns_the_offsets_and_they_never_go_back(url: str, redis: Redis, store: RedisStore) -> None:
    await store.apply(batch(change("a", 1, memory("a")), offset=10))
    await store.apply(batch(offset=7))
    second = RedisStore(config(url))
    assert await second.open() == {(TOPIC, 0): 10}
    assert await second.flush(force=True) == {(TOPIC, 0): 10}
    await second.apply(batch(change("b", 2, memory("b")), offset=12))
    await store.check()  # another consumer went further: nothing is lost
    await second.close()


async def test_flushall_is_noticed_by_the_next_apply_and_by_check(store: RedisStore, redis: Redis) -> None:
    await store.apply(batch(change("a", 1, memory("a"))))
    await redis.flushall()
    with pytest.raises(StoreLost):
        await store.apply(batch(change("b", 2, memory("b"))))
    assert not await redis.keys("*")
    with pytest.raises(StoreLost, match="flushed"):
        await store.check()
    assert await store.open() == {}
    await store.check()
    await redis.flushall()
    with pytest.raises(StoreLost):
        await store.truncate(batch(), at(9))


async def test_an_older_copy_is_noticed(store: RedisStore, redis: Redis) -> None:
    await store.apply(batch(change("a", 1, memory("a")), offset=10))
    await redis.hset("cdc:state", f"o:{TOPIC}:0", "9")
    with pytest.raises(StoreLost, match="went back"):
        await store.check()
    with pytest.raises(StoreLost, match="went back"):
        await store.apply(batch(change("b", 2, memory("b")), offset=11))
    assert not await redis.exists("memory:b")
    assert await store.open() == {(TOPIC, 0): 9}


async def test_swap_shows_the_new_store_at_once_and_rollback_the_old(url: str, redis: Redis, store: RedisStore) -> None:
    await store.apply(batch(change("old", 1, memory("old")), offset=5))
    shadow = await store.shadow()
    assert await shadow.open() == {}
    await shadow.apply(batch(change("new", 2, memory("new")), offset=9))
    assert await redis.exists("memory:old", "memory:new") == 1
    await store.swap()
    assert await redis.exists("memory:old") == 0  # a connection that selected the database before
    assert await redis.exists("memory:new") == 1
    with pytest.raises(StoreLost):
        await store.apply(batch(change("late", 3, memory("late")), offset=6))
    with pytest.raises(StoreLost):
        await shadow.apply(batch(change("late", 3, memory("late")), offset=10))
    with pytest.raises(StoreLost, match="swapped"):
        await store.check()
    assert await store.open() == {(TOPIC, 0): 9}
    assert await store.apply(batch(change("late", 3, memory("late")), offset=10)) == Applied(upserts=1)
    with pytest.raises(StoreError, match="no shadow"):
        await store.swap()
    await store.rollback()
    assert await store.open() == {(TOPIC, 0): 5}
    assert await redis.exists("memory:old") == 1
    await shadow.close()
    again = await store.shadow()  # a second rebuild replaces what the first left
    assert await again.open() == {}
    assert await again.count("public", "memories") == 0
    await again.close()


async def test_a_call_lost_by_a_failover_in_the_middle_of_a_batch(url: str, redis: Redis) -> None:
    """Two calls a batch; what the first wrote is lost before the second, together with the offsets it moved."""
    store = RedisStore(config(url, batch=2))
    await store.open()
    await store.apply(batch(change("a", 1, memory("a")), offset=2))
    before = await redis.hgetall("cdc:state")
    call = store._call

    async def loses(*args: Any) -> Applied:
        done = await call(*args)
        await redis.delete("memory:b", "memory:c")
        await redis.hset("cdc:state", mapping=before)  # what a promoted replica holds
        return done

    store._call = loses  # type: ignore[method-assign]
    records = [change(key, lsn, memory(key)) for key, lsn in (("b", 2), ("c", 3), ("d", 4))]
    with pytest.raises(StoreLost, match="went back"):
        await store.apply(batch(*records, offset=5))
    store._call = call  # type: ignore[method-assign]
    assert await store.open() == {(TOPIC, 0): 2}
    await store.apply(batch(*records, offset=5))
    assert await redis.exists("memory:a", "memory:b", "memory:c", "memory:d") == 4
    await redis.hdel("cdc:state", "t:public.memories")  # noted apart from the data, so it may be lost alone
    with pytest.raises(StoreLost, match="noted of"):
        await store.apply(batch(change("e", 6, memory("e")), offset=7))
    await store.close()


async def test_rollback_without_a_rebuild(store: RedisStore) -> None:
    with pytest.raises(StoreError, match="no previous"):
        await store.rollback()


@pytest.mark.parametrize("database", [0, 1])
async def test_foreign_keys_forbid_a_swap(url: str, redis: Redis, store: RedisStore, database: int) -> None:
    await store.apply(batch(change("a", 1, memory("a"))))
    async with Redis.from_url(url.rsplit("/", 1)[0] + f"/{database}") as other:
        await other.set("sessions:1", "x")
        with pytest.raises(PreconditionError, match="sessions:1"):
            await store.shadow()
        assert await other.get("sessions:1") == b"x"


async def test_an_unreachable_server(url: str) -> None:
    store = RedisStore(config("redis://127.0.0.1:1/0"))
    with pytest.raises(ConnectError, match="cannot be reached"):
        await store.open()
    with pytest.raises(ConnectError):
        await store.check()
    await store.close()


async def test_a_wrong_address() -> None:
    with pytest.raises(ConfigError, match="no address"):
        RedisStore(config("http://nowhere"))


async def test_errors_of_the_server_have_remedies(url: str, redis: Redis, store: RedisStore) -> None:
    await redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(ConnectError, match="maxmemory"):
            await store.apply(batch(change("a", 1, memory("a"))))
    finally:
        await redis.config_set("maxmemory", "0")
    await redis.config_set("requirepass", "sesame")
    try:
        locked = RedisStore(config(url))
        with pytest.raises(ConnectError, match="password"):
            await locked.open()
        wrong = RedisStore(config(url, password="open"))
        with pytest.raises(ConnectError, match="password"):
            await wrong.open()
        right = RedisStore(config(url, password="sesame"))
        assert await right.open() == {}
        for each in (locked, wrong, right):
            await each.close()
    finally:
        await redis.config_set("requirepass", "")
    await redis.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(ConnectError, match="primary"):
            await store.apply(batch(change("a", 1, memory("a"))))
    finally:
        await redis.replicaof("NO", "ONE")


async def test_scripts_are_loaded_again(store: RedisStore, redis: Redis) -> None:
    await redis.script_flush()
    assert await store.apply(batch(change("a", 1, memory("a")))) == Applied(upserts=1)


async def test_large_batches_go_in_several_calls(url: str, redis: Redis) -> None:
    store = RedisStore(config(url, batch=100))
    await store.open()
    applied = await store.apply(batch(*(change(str(i), i + 1, memory(str(i))) for i in range(1234)), offset=1234))
    assert applied == Applied(upserts=1234)
    assert await store.count("public", "memories") == 1234
    assert await redis.hget("cdc:state", "watermark") == at(1234).decode()
    assert await redis.zcard("memory:by_user:ann") == 1000
    await store.close()


KEYS = st.sampled_from(["a", "b:1", "by_user", "d%"])
WRITES = st.tuples(
    KEYS, st.one_of(st.none(), st.sampled_from(["ann", "bob", None, "x:y"])), st.booleans(), st.integers()
)
HISTORIES = st.lists(WRITES, min_size=1, max_size=25)


@settings(max_examples=60, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=HISTORIES, data=st.data())
def test_any_delivery_ends_at_the_model(url: str, history: list[Any], data: st.DataObject) -> None:
    """Deliveries are repeated and, within a key, replayed from any earlier point; the end is always the last write."""
    records, model = [], {}
    for lsn, (key, user, deleted, number) in enumerate(history, start=1):
        row = None if deleted else memory(key, user_id=user, n=number, extra="x" if number % 2 else None)
        records.append(change(key, lsn, row))
        model[key] = (lsn, row)
    replays = data.draw(st.lists(st.integers(0, len(records)), max_size=3))
    delivered = [r for start in (*replays, 0) for r in data.draw(st.permutations(records[start:]))]
    sizes = data.draw(st.integers(1, 7))
    asyncio.run(_equal_after(url, delivered, model, sizes))


async def _equal_after(url: str, delivered: list[Record], model: dict[str, Any], size: int) -> None:
    async with Redis.from_url(url, decode_responses=True) as client:
        await client.flushall()
        store = RedisStore(config(url, batch=3))
        await store.open()
        for start in range(0, len(delivered), size):
            await store.apply(batch(*delivered[start : start + size], offset=start + 1))
        live = {key: at(lsn) for key, (lsn, row) in model.items() if row is not None}
        assert {key async for key in store.scan("public", "memories")} == {(encoded_key(k), p) for k, p in live.items()}
        assert await store.count("public", "memories") == len(live)
        indexed = set()
        for key, (lsn, row) in model.items():
            name = keys_for(store.config, "public", "memories", encoded_key(key))
            [version] = await store.versions("public", "memories", [encoded_key(key)])
            assert version == Version(at(lsn), VECTOR, deleted=row is None)
            held = await client.hgetall(name)
            expected = {} if row is None else {k: str(v) for k, v in row.items() if v is not None}
            assert {k: v for k, v in held.items() if not k.startswith("_")} == expected
            if row is not None and row["user_id"] is not None:
                indexed.add(("memory:by_user:" + row["user_id"].replace(":", "%3A"), name))
        found = {(i, m) for i in await client.keys("memory:by_user:*") for m in await client.zrange(i, 0, -1)}
        assert found == indexed
        await store.close()


def keyed(rank: int, lsn: int) -> Record:
    """A record of the time after the table's key became `rank`."""
    return change({"rank": rank}, lsn, {"id": f"m{rank}", "rank": rank})


def row(id: int, lsn: int) -> Record:
    return change(id, lsn, {"id": id, "rank": id})


@pytest.fixture
def plain(url: str, redis: Redis) -> Config:
    """No template: key names follow the key columns, so that those of both keys look the same."""
    return config(url, tables={})


async def held(redis: Redis) -> dict[str, str]:
    """Redis key → position."""
    return {key: await redis.hget(key, "_pos") for key in sorted(await redis.keys("memories:*"))}


async def test_another_key_replaces_the_one_before_in_any_order(plain: Config, redis: Redis) -> None:
    """The layout of the highest position wins; what is older is stale, never a dead letter."""
    store = RedisStore(plain)
    await store.open()
    await store.apply(batch(row(1, 1), row(2, 2), row(3, 3)))
    assert await store.apply(batch(row(4, 4), keyed(2, 11), row(5, 5), keyed(7, 10))) == Applied(upserts=2, stale=2)
    new = {"memories:2": at(11).decode(), "memories:7": at(10).decode()}
    assert await held(redis) == new
    gone = change(2, 7, None)
    gone = gone._replace(value=(gone.value or b"").replace(b'"before":null', b'"before":{"id":2}'))
    assert await store.apply(batch(row(9, 6), gone, tombstone(2, 7))) == Applied(stale=3)
    assert await store.apply(batch(keyed(8, 9))) == Applied(upserts=1)
    assert await store.apply(batch(row(1, 12))) == Applied(upserts=1)
    assert await held(redis) == {"memories:1": at(12).decode()}
    assert await store.count("public", "memories") == 1
    await store.close()
    assert await store.open() == {("memories.public.memories", 0): 1}
    assert await store.apply(batch(keyed(2, 11))) == Applied(stale=1)
    await store.close()


async def test_members_agree_on_another_key(plain: Config, redis: Redis) -> None:
    """A member that was behind is told to open anew, and finds the other's layout."""
    ahead, behind = RedisStore(plain), RedisStore(plain)
    await ahead.open()
    await behind.open()
    await ahead.apply(batch(row(1, 1)))
    await behind.close()
    await behind.open()
    await behind.apply(batch(row(2, 2)))
    await ahead.apply(batch(keyed(5, 20)))
    with pytest.raises(StoreLost, match="key layout"):
        await behind.apply(batch(row(3, 3)))
    await behind.open()
    assert await behind.apply(batch(row(3, 3), keyed(6, 15))) == Applied(upserts=1, stale=1)
    assert list(await held(redis)) == ["memories:5", "memories:6"]
    await ahead.close()
    await behind.close()


async def test_a_crash_before_old_rows_are_removed_is_mended_by_the_next_open(
    plain: Config, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisStore(plain)
    await store.open()
    await store.apply(batch(row(1, 1), row(2, 2)))
    monkeypatch.setattr(RedisStore, "_clear", failing)
    with pytest.raises(ConnectError):
        await store.apply(batch(keyed(5, 20)))
    monkeypatch.undo()
    await store.close()
    assert list(await held(redis)) == ["memories:1", "memories:2"]
    await store.open()
    assert await held(redis) == {}
    assert await store.apply(batch(row(2, 2), keyed(5, 20))) == Applied(upserts=1, stale=1)
    assert not [field for field in await redis.hkeys("cdc:state") if field.startswith("w:")]
    await store.close()


async def failing(_store: RedisStore) -> None:
    raise ConnectError("the process is gone")


async def test_a_template_that_does_not_fit_another_key_stops(store: RedisStore) -> None:
    await store.apply(batch(change("a", 1, memory("a"))))
    with pytest.raises(ConfigError, match="has to name each key column once: rank"):
        await store.apply(batch(keyed(1, 5)))
