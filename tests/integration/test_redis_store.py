"""The Redis store on a real Redis: versions, tombstones, indexes, exact values, rows of others."""

from __future__ import annotations

import numpy as np
from redis.asyncio import Redis

from cdc.envelope import TRUNCATE_KEY, encode_floats
from consumers.redis import RedisStore
from consumers.store import Applied, Record, Version
from tests.redis_records import TOPIC, VECTOR, at, batch, change, config, memory, tombstone


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


async def test_large_batches_go_in_several_calls(url: str, redis: Redis) -> None:
    store = RedisStore(config(url, batch=100))
    await store.open()
    applied = await store.apply(batch(*(change(str(i), i + 1, memory(str(i))) for i in range(1234)), offset=1234))
    assert applied == Applied(upserts=1234)
    assert await store.count("public", "memories") == 1234
    assert await redis.hget("cdc:state", "watermark") == at(1234).decode()
    assert await redis.zcard("memory:by_user:ann") == 1000
    await store.close()
