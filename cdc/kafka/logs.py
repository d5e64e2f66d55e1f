"""Whether the topics still hold what the reader wrote: compared at every start, and every few seconds while it runs.

A table's topic keeps everything but what compaction may drop, and compaction moves neither its beginning nor its end.
So records are lost to the stores, and to every rebuild, when
- the topic has another id than progress noted: it was deleted and made anew;
- a partition begins later than noted: retention, or kafka-delete-records, cut off its beginning;
- a partition ends before where the newest heartbeat saw it end: an unclean leader election, or a disk that lost writes;
- the topics hold records, and there is no progress: the progress topic was deleted.
Each is a GapError, as a lost slot is: `cdc resync` writes every row anew, in a new epoch, and sweeps the rest. All but
the last are TopicsLost, for which the reader does so itself: without progress nobody knows whose topics those are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NoReturn

import msgspec
from aiokafka import TopicPartition

from cdc.config import Config, Kafka
from cdc.envelope import POSITION_HEADER
from cdc.errors import ConnectError, GapError, TopicsLost
from cdc.kafka import failure
from cdc.kafka.offsets import open_consumer
from cdc.kafka.progress import READ_SECONDS, Log, Progress, newest_value
from cdc.log import get
from cdc.position import decode_position
from cdc.topic_ids import topic_ids

log = get(__name__)
WATCH_SECONDS = 5.0  # as often as consumers look
REMEDY = "run `cdc resync`: it makes a new epoch, reads every table again and removes what no longer exists"
Partitions = Mapping[str, int]  # topic → how many


class _Heartbeat(msgspec.Struct):
    position: str
    ends: dict[str, list[int]]


async def compared(
    config: Config, progress: Progress, partitions: Partitions, ends: Mapping[str, list[int]]
) -> Progress:
    """Progress that notes the logs of these topics. Raises GapError when they lost records, ConnectError.

    `ends`: where they end now, for committed readers."""
    if progress.epoch == 1 and not progress.logs and not progress.commit_lsn:  # nothing was ever written, it says
        await _refuse_orphans(config, partitions)
    found = await read_logs(config.kafka, partitions)
    compare(progress.logs, found)
    await _compare_ends(config, progress.epoch, ends)
    return msgspec.structs.replace(progress, logs={**found, **{t: n for t, n in progress.logs.items() if t in found}})


async def read_logs(kafka: Kafka, partitions: Partitions) -> dict[str, Log]:
    """Ids and beginnings of those topics that are there. Raises ConnectError."""
    async with failure.bounded(kafka, "asking for the topics' ids"):
        ids = await topic_ids(kafka, partitions.keys())
    places = [TopicPartition(topic, number) for topic in ids for number in range(partitions[topic])]
    if not places:
        return {}
    async with open_consumer(kafka) as consumer, failure.bounded(kafka, "reading where the topics begin"):
        starts = await consumer.beginning_offsets(places)
    found = {topic: [starts[TopicPartition(topic, n)] for n in range(partitions[topic])] for topic in ids}
    return {topic: Log(ids[topic], offsets if any(offsets) else []) for topic, offsets in found.items()}


def compare(noted: Mapping[str, Log], found: Mapping[str, Log]) -> None:
    """Raises GapError."""
    for topic in noted.keys() & found.keys():
        before, now = noted[topic], found[topic]
        if before.id != now.id:
            _refuse(f"topic {topic} was deleted and made anew: what it held is lost")
        for number, start in enumerate(now.starts):
            if start > (before.starts[number] if before.starts else 0):
                _refuse(f"topic {topic} has lost the records of partition {number} below offset {start}")


async def watch_logs(config: Config, noted: Mapping[str, Log], partitions: Partitions) -> None:
    """For ever. Raises GapError, also for a topic that is missing twice: once may be a broker that is late. That Kafka
    is away, the writer finds out."""
    missing: set[str] = set()
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        try:
            found = await read_logs(config.kafka, partitions)
        except ConnectError as error:
            log.debug("the topics cannot be looked at now", reason=error.message)
            continue
        compare(noted, found)
        for topic in missing - found.keys():
            _refuse(f"topic {topic} was deleted: what it held is lost")
        missing = set(noted.keys() - found.keys())


async def highest_epoch(config: Config, topics: Partitions) -> int:
    """The newest epoch among the topics' committed records, 0 when they have none. Reads all of them."""
    highest = 0
    places = [TopicPartition(topic, number) for topic, count in topics.items() for number in range(count)]
    async with open_consumer(config.kafka) as consumer, failure.bounded(config.kafka, "reading topics", READ_SECONDS):
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        while [place for place in places if await consumer.position(place) < ends[place]]:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                highest = max(highest, *map(_epoch, map(dict, (record.headers for record in records))))
    return highest


def _epoch(headers: Mapping[str, bytes]) -> int:
    position = headers.get(POSITION_HEADER)
    return decode_position(position).epoch if position else 0


async def _refuse_orphans(config: Config, partitions: Partitions) -> None:
    """At-least-once delivery writes progress after the data, so there it may be missing in all innocence."""
    if config.kafka.delivery == "exactly-once" and await highest_epoch(config, partitions):
        raise GapError(
            f"the topics hold records, and {config.kafka.progress_topic} no progress of {config.source_name}",
            hint=REMEDY,
        )


async def _compare_ends(config: Config, epoch: int, ends: Mapping[str, list[int]]) -> None:
    value = await newest_value(config, config.kafka.heartbeat_topic)
    if value is None:
        return
    heartbeat = msgspec.json.decode(value, type=_Heartbeat)
    if decode_position(heartbeat.position.encode()).epoch < epoch:
        return  # of before a resync
    for topic, seen in heartbeat.ends.items():
        for number, (before, now) in enumerate(zip(seen, ends.get(topic, ()), strict=False)):
            if now < before:
                _refuse(f"topic {topic} ends at {now} in partition {number} and has ended at {before}")


def _refuse(what: str) -> NoReturn:
    raise TopicsLost(what, hint=REMEDY)
