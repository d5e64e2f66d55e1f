"""What is true right now, asked of every server and process itself: the one source of `cdc status` and `cdc top`.

Something that cannot be asked is down, with its reason; its numbers are absent, never 0.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec
import psycopg
from aiokafka.errors import KafkaConnectionError, KafkaError
from psycopg import sql

from cdc.commands.addresses import PROCESSES, metrics_address
from cdc.commands.exposition import Samples, read_samples, total
from cdc.commands.index_client import RemoteIndex
from cdc.commands.schedule_entries import entries
from cdc.config import Config
from cdc.errors import CdcError, StoreError
from cdc.kafka import failure
from cdc.kafka.progress import Progress, read_progress
from cdc.position import decode_position
from cdc.source.catalog import Catalog
from cdc.source.connection import connect, connect_error
from cdc.source.slot import Slot, read_slot
from cdc.wishes import Wish, read_wishes
from consumers.freshness import LOOK_BACK, Freshness, Heartbeat
from consumers.gateway.schedules import Entry
from consumers.redis import RedisStore
from consumers.redis.sentinel import read_sentinel
from consumers.replay import Replayer, Span, span_ends
from consumers.store import Partition
from consumers.topics import TableTopics, table_partitions

_NOW = "SELECT (pg_current_wal_lsn() - '0/0')::int8, extract(epoch FROM clock_timestamp())::float8"
ANSWER_SECONDS = 3.0  # a healthy process answers in milliseconds
T = TypeVar("T")
Rows = dict[str, int]


@dataclass
class SourceState:
    """PostgreSQL. `lsn` is its newest WAL position, `time` its clock (Unix seconds), which commits are stamped with."""

    lsn: int
    time: float
    slot: Slot | None
    rows: Rows


@dataclass
class StoreState:
    """`at`: Unix seconds up to which it holds everything, None while unknown, with the reason; `watermark` the LSN of
    that."""

    rows: Rows | None = None
    at: float | None = None
    watermark: int | None = None
    offset_lag: int | None = None
    reason: str = ""


@dataclass
class Part(Generic[T]):
    """`value`, or the reason why there is none."""

    value: T | None = None
    reason: str = ""

    @property
    def up(self) -> bool:
        """It could be asked."""
        return self.value is not None


@dataclass
class Observation:
    """Everything, at about `time` (Unix seconds)."""

    time: float
    source: Part[SourceState]
    progress: Part[Progress]
    stores: dict[str, Part[StoreState]]
    processes: dict[str, Part[Samples]] = field(default_factory=dict)
    wishes: Part[dict[str, Wish]] = field(default_factory=Part)
    schedules: Part[list[Entry]] = field(default_factory=Part)


async def observe(config: Config, *, count: bool = True) -> Observation:
    """Asks all of them at once. `count` False leaves out the rows, which cost a walk over the tables."""
    addresses = {name: metrics_address(config, name) for name in PROCESSES}
    servers = asyncio.gather(
        _part(config, asyncio.to_thread(_source, config, count)),
        _part(config, _progress(config)),
        _part(config, read_wishes(config.kafka)),
        _part(config, asyncio.to_thread(entries, config)),
    )
    stores = asyncio.gather(_part(config, _redis(config, count)), _part(config, _faiss(config, count)))
    processes = asyncio.gather(
        *(_part(config, read_samples(address, ANSWER_SECONDS)) for address in addresses.values())
    )
    source, progress, wishes, schedules = await servers
    redis, faiss = await stores
    scraped = dict(zip(addresses, await processes, strict=True))
    stores_seen = {"redis": redis, "faiss": faiss}
    return Observation(time.time(), source, progress, stores_seen, scraped, wishes, schedules)


async def _part(config: Config, work: Awaitable[T]) -> Part[T]:
    try:
        return Part(await work)
    except CdcError as error:
        return Part(reason=error.message)
    except KafkaConnectionError:
        return Part(reason=(await failure.explain(config.kafka)).message)
    except KafkaError as error:
        return Part(reason=failure.typed(error, config.kafka, "answering").message)


def _source(config: Config, count: bool) -> SourceState:
    with connect(config.postgres, name="memory-cdc status") as connection:
        try:
            row = connection.execute(_NOW).fetchone()
            assert row is not None
            slot = read_slot(connection, config.postgres.slot)
            return SourceState(int(row[0]), float(row[1]), slot, _rows(connection, config) if count else {})
        except psycopg.Error as error:
            raise connect_error(error) from error


def _rows(connection: psycopg.Connection[Any], config: Config) -> Rows:
    rows: Rows = {}
    for table in Catalog(connection, config).selected_tables():
        query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table.schema, table.name))
        row = connection.execute(query).fetchone()
        rows[f"{table.schema}.{table.name}"] = int(row[0]) if row else 0
    return rows


async def _progress(config: Config) -> Progress:
    progress = await read_progress(config)
    if progress is None:
        raise StoreError("the reader has not written anything yet")
    return progress


async def _redis(config: Config, count: bool) -> StoreState:
    """From Redis itself and the topics, so that it is right also when the consumer is dead."""
    store = RedisStore(config)
    try:
        sentinel = await read_sentinel(store.link, config.redis.namespace)
        if sentinel is None:
            raise StoreError("Redis holds no data of ours; a running consumer refills it")
        rows = {table: await store.count(*table.split(".", 1)) for table in sentinel.tables} if count else None
    finally:
        await store.close()
    state = StoreState(rows)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await _place(config, sentinel.offsets, state)
    except TimeoutError:
        state.reason = f"Kafka did not tell within {ANSWER_SECONDS:g} s how far it is"
    except CdcError as error:
        state.reason = error.message
    except KafkaError as error:  # without Kafka nobody can tell how far it is
        state.reason = failure.typed(error, config.kafka, "telling how far it is").message
    return state


async def _place(config: Config, offsets: Mapping[Partition, int], state: StoreState) -> None:
    """How far a store with these offsets is: the newest heartbeat they have reached."""
    topics = TableTopics(config.kafka.prefix, config.postgres.tables)
    partitions = await table_partitions(config, topics)
    freshness = Freshness(config, "observed")
    async with Replayer(config) as replayer:
        ends = await replayer.ends(partitions)
        for heartbeat in await _heartbeats(config, replayer):
            freshness.heard(heartbeat)
    applied = {partition: offsets.get(partition, 0) for partition in partitions}
    freshness.reached(applied, topics.__contains__, {topic for topic, _number in partitions})
    state.at = freshness.at
    state.watermark = decode_position(freshness.position).commit_lsn if freshness.position else None
    state.offset_lag = sum(max(0, end - applied[partition]) for partition, end in ends.items())


async def _heartbeats(config: Config, replayer: Replayer) -> Sequence[Heartbeat]:
    partition = (config.kafka.heartbeat_topic, 0)
    end = (await span_ends(config, [config.kafka.heartbeat_topic])).get(partition)
    if end is None:  # to ask the end of a topic that is not there takes the client 40 s
        raise StoreError(
            f"the topic {partition[0]} does not exist yet, or may not be read",
            hint="start the reader, which makes it, or grant this user Read and Describe on it",
        )
    found: list[Heartbeat] = []
    async for _partition, messages, _reached in replayer.read({partition: Span(max(0, end - LOOK_BACK), end)}):
        for message in messages:
            if message.value is not None and message.key == config.source_name.encode():
                found.append(msgspec.json.decode(message.value, type=Heartbeat))
    return found


async def _faiss(config: Config, count: bool) -> StoreState:
    """Of the process that holds it: an index without its process is down."""
    async with RemoteIndex(config) as index:
        table = config.faiss.table
        rows = {table: await index.count(*table.split(".", 1))}
    samples = await read_samples(metrics_address(config, "faiss"), ANSWER_SECONDS)
    at = total(samples, "cdc_store_applied_timestamp_seconds", store="faiss")
    watermark = total(samples, "cdc_store_watermark_lsn_bytes", store="faiss")
    lag = total(samples, "cdc_store_offset_lag_records", store="faiss")
    return StoreState(
        rows if count else None,
        at,
        None if watermark is None else int(watermark),
        None if lag is None else int(lag),
    )
