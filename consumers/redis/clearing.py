"""Emptying our part of a Redis, a table or all of it; it fills again by itself, from the topics.

One step in the sentinel does it: it becomes another store's, forgets the offsets of what is cleared, and notes that
their records are to be removed (`w:`, as after a change of keys). Each consumer finds at its next write, or look, that
this is another store than the one it opened; opening it removes what is noted, in bounded steps, and only then it
replays. So nothing newer is ever removed, a crash between any two steps forgets nothing, and keys that are not of our
tables' patterns are never touched.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

import msgspec

from cdc.config import Config
from cdc.errors import PreconditionError, StoreError
from consumers.redis.link import Link
from consumers.redis.sentinel import Sentinel, key_of, offset_field, read_sentinel
from consumers.store import Offsets

EVERYTHING = "f" * 32  # no position is higher


async def clear(link: Link, config: Config, table: str | None = None) -> Offsets:
    """Empties `schema.table`, or all tables; what it had reached in them, for `refilled`.

    Raises StoreError where nothing of ours is, PreconditionError for a table that is not there, ConnectError."""
    sentinel = await _sentinel(link, config)
    tables = sorted(sentinel.tables) if table is None else [table]
    if not set(tables) <= sentinel.tables.keys():
        raise PreconditionError(f"Redis holds nothing of {table}", hint="`cdc status` shows what it holds")
    topics = {config.kafka.table_topic(*name.split(".", 1)) for name in tables}
    reached = {place: offset for place, offset in sentinel.offsets.items() if place[0] in topics}
    marks = [w for name in tables for w in (mark_of(EVERYTHING, name), msgspec.json.encode(sentinel.tables[name]))]
    gone = [offset_field(place) for place in reached]
    await link.run(
        "begin", [key_of(config.redis.namespace)],
        [sentinel.instance, len(gone), *gone, "instance", uuid.uuid4().hex, *marks],
    )  # fmt: skip
    return reached


async def refilled(link: Link, config: Config, wanted: Offsets, on_progress: Callable[[str, int, int], None]) -> bool:
    """Whether everything below `wanted` is there again; tells the stage, how many records are, and of how many."""
    sentinel = await _sentinel(link, config)
    done = sum(min(sentinel.offsets.get(place, 0), offset) for place, offset in wanted.items())
    total = sum(wanted.values())
    topics = {place[0] for place in wanted}
    waits = any(config.kafka.table_topic(*name.split(".", 1)) in topics for _position, name in sentinel.left)
    on_progress("waiting until a Redis consumer has removed the records" if waits else "refilling", done, total)
    return not waits and done == total


def mark_of(position: str, table: str) -> str:
    """The sentinel's field that says: records of the table up to that position are to be removed."""
    return f"w:{position}:{table}"


async def _sentinel(link: Link, config: Config) -> Sentinel:
    found = await read_sentinel(link, config.redis.namespace)
    if found is None:
        raise StoreError(f"Redis at {link.where} holds nothing of ours", hint="start `cdc consume redis`")
    return found
