"""Topics deleted, made anew or cut behind our backs: all is written anew by itself, or by a person where that is asked
for, and all stores are equal again.

No offset tells of it: a new log may have outgrown the offsets of the old one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from cdc.config import Config
from cdc.embedded import Endpoints
from cdc.errors import GapError
from cdc.kafka.progress import Progress
from cdc.kafka.topics import ensure_topics
from cdc.reader import Reader
from cdc.resync import resync
from tests.comparison import assert_equal_everywhere, assert_in_order
from tests.pipeline import MEMORIES, ReaderTask, Running, config_of, pipeline, source, written
from tests.waiting import LIMIT_SECONDS, until

ROWS = (
    "INSERT INTO memories SELECT n, 'a', repeat('x', 50), n, n, '{{}}', array_fill(n::real, ARRAY[8])"
    " FROM generate_series({}, {}) n"
)
TABLES = [("public", "memories")]


def table_topic(config: Config) -> str:
    return config.kafka.table_topic(*TABLES[0])


async def gone(admin: Any, topic: str) -> None:
    """Deletes a topic, and waits until the broker has."""
    await admin.delete_topics([topic])

    async def absent() -> bool:
        return topic not in await admin.list_topics()

    await until(absent, "a topic deleted")


async def deleted(admin: Any, config: Config) -> None:
    """Whoever comes next, the reader too, makes it again."""
    await gone(admin, table_topic(config))


async def made_anew(admin: Any, config: Config) -> None:
    """At once, and with the right settings: nobody sees it missing."""
    await gone(admin, table_topic(config))
    await ensure_topics(config.kafka, TABLES)


async def cut(admin: Any, config: Config) -> None:
    """The first record of each partition, as `kafka-delete-records` does where retention was allowed."""
    topic = table_topic(config)

    async def policy(value: str) -> None:
        # every other setting goes back to the broker's; its own start and defaults do not matter here
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, {**settings, "cleanup.policy": value})
        await admin.alter_configs([resource])

    (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    settings = {entry[0]: entry[1] for entry in answer.resources[0][4] if entry[3] == 1}  # 1: the topic's own

    async def cut_now() -> bool:
        wanted = {TopicPartition(topic, n): RecordsToDelete(1) for n in range(config.kafka.partitions)}
        try:
            await admin.delete_records(wanted)
        except KafkaError:
            return False  # the policy has not come through yet
        return True

    await policy("delete")
    await until(cut_now, "records deleted")
    await policy("compact")


async def progress_deleted(admin: Any, config: Config) -> None:
    """The topics hold records, and nobody knows how far."""
    await gone(admin, config.kafka.progress_topic)


Harm = Callable[[Any, Config], Awaitable[None]]


@pytest.mark.parametrize(("harm", "reading"), [(made_anew, True), (cut, False)])
async def test_a_lost_log_is_written_anew_by_itself(
    servers: Endpoints, dsn: str, tmp_path: Path, harm: Harm, reading: bool
) -> None:
    """Redis is flushed too: what the topics lack it cannot have from them."""
    config = config_of(servers, dsn, tmp_path)
    admin: Any = AIOKafkaAdminClient(**config.kafka.client_options())
    await admin.start()
    try:
        with source(config) as connection, redis.Redis.from_url(config.redis.url) as memory:
            connection.execute(MEMORIES)
            async with pipeline(config) as running:
                connection.execute(ROWS.format(1, 60))
                await running.caught_up()
                if not reading:
                    await running.source.stop()
                await harm(admin, config)
                connection.execute(ROWS.format(61, 300))
                connection.execute("DELETE FROM memories WHERE id <= 10")
                memory.flushdb()
                if not reading:
                    running.source = ReaderTask(config)
                await until(lambda: epoch(running) == 2, "a new epoch")
                await running.caught_up()
                assert_in_order(await assert_equal_everywhere(running))
    finally:
        await admin.close()


def epoch(running: Running) -> int:
    """Of what is durable."""
    progress = running.source.reader.progress
    return progress.epoch if progress else 0


async def test_topics_that_are_lost_again_need_a_person(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    config = config_of(servers, dsn, tmp_path)
    admin: Any = AIOKafkaAdminClient(**config.kafka.client_options())
    await admin.start()
    try:
        with source(config) as connection:
            connection.execute(MEMORIES)
            connection.execute(ROWS.format(1, 60))
            running = ReaderTask(config)
            await written(config, running)
            await made_anew(admin, config)
            await written(config, running, lambda progress: progress.epoch == 2 and not unread(progress))
            await made_anew(admin, config)
            with pytest.raises(GapError, match="made anew"):
                await asyncio.wait_for(running.task, LIMIT_SECONDS)
    finally:
        await admin.close()


def unread(progress: Progress) -> list[str]:
    """Tables whose snapshot is not done."""
    return [table for table, state in progress.snapshots.items() if not state.done]


@pytest.mark.parametrize(
    ("harm", "words", "reading"),
    [
        (deleted, "was deleted", True),
        (made_anew, "deleted and made anew", True),
        (cut, "has lost the records", True),
        (deleted, "deleted and made anew", False),
        (progress_deleted, "no progress", False),
    ],
)
async def test_a_lost_log_is_refused_and_a_resync_mends_it(
    servers: Endpoints, dsn: str, tmp_path: Path, harm: Harm, words: str, reading: bool
) -> None:
    config = config_of(servers, dsn, tmp_path, kafka={"lost_topics": "stop"})
    admin: Any = AIOKafkaAdminClient(**config.kafka.client_options())
    await admin.start()
    try:
        with source(config) as connection:
            connection.execute(MEMORIES)
            async with pipeline(config) as running:
                connection.execute(ROWS.format(1, 60))
                await running.caught_up()
                if not reading:
                    await running.source.stop()
                await harm(admin, config)
                if reading:  # the new log outgrows the old one
                    connection.execute(ROWS.format(61, 300))
                    with pytest.raises(GapError, match=words) as caught:
                        await asyncio.wait_for(asyncio.shield(running.source.task), LIMIT_SECONDS)
                else:
                    with pytest.raises(GapError, match=words) as caught:
                        await asyncio.wait_for(Reader(config, gap_seconds=0).run(), LIMIT_SECONDS)
                assert "cdc resync" in caught.value.hint
                connection.execute("DELETE FROM memories WHERE id <= 10")  # unseen
                assert (await resync(config)).epoch == 2
                running.source = ReaderTask(config)
                await running.caught_up()
                assert_in_order(await assert_equal_everywhere(running))
                await running.restart()  # what was refused is not refused again
                connection.execute("DELETE FROM memories WHERE id = 30")
                await running.caught_up()
                await assert_equal_everywhere(running)
    finally:
        await admin.close()
