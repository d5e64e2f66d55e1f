"""Who sees a row when: a consumer of committed records, Redis by EXISTS, the index by searching.

Each notes when it first sees the last row of a transaction, until all are seen or the time is up: what was not seen
then took for ever. All processes run on one machine and share its clock.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from redis.asyncio import Redis

from benchmarks import topic
from benchmarks.children import Child
from benchmarks.engine import Lane
from benchmarks.writer import TRANSACTIONS, Schedule

LOOK_SECONDS = 0.002  # between two looks into Redis: its resolution
PATIENCE_SECONDS = 15.0  # after the last transaction was due
STARTED_SECONDS = 30.0
SUSTAINED_SECONDS = 1.0  # who is further behind than that at the end does not keep the rate

_key = msgspec.json.Decoder(dict[str, int]).decode

Times = dict[int, float]  # id of a transaction's last row → monotonic seconds


@dataclass(frozen=True)
class Waits:
    """Seconds from commit until seen, in the order of the transactions, without the warm-up; infinite for never.
    `behind`: the most a commit came after its time."""

    seconds: tuple[float, ...]
    behind: float

    @property
    def sustained(self) -> bool:
        """Whether the rate was kept: PostgreSQL committed in time, and the last quarter did not come ever later."""
        last = self.seconds[-max(1, len(self.seconds) // 4) :]
        return self.behind < SUSTAINED_SECONDS and statistics.median(last) < SUSTAINED_SECONDS


@dataclass(frozen=True)
class Places:
    """Where is looked: Kafka always; Redis with its url and the keys' prefix; the index when `searched` are its rows,
    in the order in which the child `index` tells that it found them."""

    lane: Lane
    children: Sequence[Child]
    redis_url: str | None = None
    index: Child | None = None
    searched: Sequence[int] = ()


async def observed(places: Places, schedule: Schedule) -> dict[str, Waits]:
    """Runs the schedule; how long each place took."""
    async with topic.committed_reader(places.lane.config) as consumer:
        consumer.assign(topic.partitions_of(places.lane.config, places.lane.table))
        await consumer.seek_to_end()
        await asyncio.gather(*[consumer.position(partition) for partition in consumer.assignment()])
        with schedule.start() as writer:
            started = await asyncio.to_thread(writer.answer, STARTED_SECONDS)
            until = started + len(schedule.watched) / TRANSACTIONS + PATIENCE_SECONDS
            async with asyncio.TaskGroup() as group:
                seen = {"Kafka": group.create_task(in_kafka(consumer, schedule, until))}
                if places.redis_url:
                    seen["Redis"] = group.create_task(in_redis(places, schedule, started, until))
                if places.index:
                    seen["search"] = group.create_task(asyncio.to_thread(in_index, places, until))
            written = await asyncio.to_thread(writer.answer, STARTED_SECONDS)
    rows = {"search": places.searched}
    return {
        name: waits(written, task.result(), rows.get(name, schedule.watched), schedule) for name, task in seen.items()
    }


def waits(written: Mapping[str, Any], seen: Times, rows: Sequence[int], schedule: Schedule) -> Waits:
    """Of the rows that were looked for, after the warm-up."""
    commits = dict(zip(schedule.watched, written["commits"], strict=True))
    counted = [row for row in rows if row > schedule.first + schedule.warm]
    return Waits(tuple(seen.get(row, math.inf) - commits[row] for row in counted), written["behind"])


async def in_kafka(consumer: Any, schedule: Schedule, until: float) -> Times:
    """By a consumer."""
    watched = set(schedule.watched)
    seen: Times = {}
    while len(seen) < len(watched) and time.monotonic() < until:
        for messages in (await consumer.getmany(timeout_ms=100)).values():
            at = time.monotonic()
            for row in watched.intersection(_key(message.key)["id"] for message in messages):
                seen.setdefault(row, at)
    return seen


async def in_redis(places: Places, schedule: Schedule, started: float, until: float) -> Times:
    """By EXISTS of every row that is due and not seen yet."""
    seen: Times = {}
    assert places.redis_url is not None
    async with Redis.from_url(places.redis_url) as server:
        while len(seen) < len(schedule.watched) and (clock := time.monotonic()) < until:
            for child in places.children:
                child.look()
            due = schedule.watched[: int((clock - started) * TRANSACTIONS) + 1]
            if pending := [row for row in due if row not in seen]:
                pipeline = server.pipeline(transaction=False)
                for row in pending:
                    pipeline.exists(f"notes:{row}")
                there = await pipeline.execute()
                at = time.monotonic()
                seen |= {row: at for row, exists in zip(pending, there, strict=True) if exists}
            await asyncio.sleep(LOOK_SECONDS)
    return seen


def in_index(places: Places, until: float) -> Times:
    """By searching: the child says when it found which vector."""
    seen: Times = {}
    assert places.index is not None
    while len(seen) < len(places.searched):
        try:
            answer = places.index.answer(max(0.1, until - time.monotonic()))
        except TimeoutError:
            break  # the rest counts as never
        seen[places.searched[answer["place"]]] = answer["seconds"]
    return seen
