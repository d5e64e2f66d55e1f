"""Topics on a real broker: created right, checked, refused when they differ, never altered."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from cdc.config import Kafka, parse
from cdc.embedded import Endpoints
from cdc.errors import ConnectError, TopicError
from cdc.kafka.topics import check_topics, ensure_topics

TABLES = [("public", "memories"), ("notes", "notes")]


def kafka(bootstrap: str, prefix: str, **settings: Any) -> Kafka:
    section = {"bootstrap": bootstrap, "prefix": prefix, **settings}
    return parse({"postgres": {"dsn": "dbname=none"}, "kafka": section}).kafka


@pytest.fixture
def prefix() -> str:
    return f"topics-{secrets.token_hex(4)}"


@pytest.fixture
def bootstrap(servers: Endpoints) -> str:
    return servers.kafka_bootstrap


@pytest.fixture
async def admin(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await client.start()
    yield client
    await client.close()


async def settings_of(admin: AIOKafkaAdminClient, topic: str) -> dict[str, str]:
    (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    return {entry[0]: entry[1] for entry in answer.resources[0][4]}


async def partitions_of(admin: AIOKafkaAdminClient, topic: str) -> int:
    return {t["topic"]: len(t["partitions"]) for t in await admin.describe_topics()}[topic]


async def test_created_with_the_settings(bootstrap: str, prefix: str, admin: AIOKafkaAdminClient) -> None:
    config = kafka(bootstrap, prefix, partitions=3)
    assert await ensure_topics(config, TABLES) == {f"{prefix}.public.memories": 3, f"{prefix}.notes.notes": 3}
    rows = await settings_of(admin, f"{prefix}.public.memories")
    assert rows["cleanup.policy"] == "compact"
    assert rows["retention.ms"] == rows["retention.bytes"] == "-1"
    assert rows["max.message.bytes"] == str(config.max_record_bytes)
    assert rows["compression.type"] == "producer"
    for topic in (config.progress_topic, config.heartbeat_topic, config.control_topic):
        assert await partitions_of(admin, topic) == 1
        assert (await settings_of(admin, topic))["cleanup.policy"] == "compact"
    letters = await settings_of(admin, config.dead_letter_topic("faiss"))
    assert (letters["cleanup.policy"], letters["retention.ms"]) == ("delete", "-1")
    assert await ensure_topics(config, TABLES), "a second start finds them right"
    assert await check_topics(config, TABLES) == []


async def test_checking_creates_nothing(bootstrap: str, prefix: str, admin: AIOKafkaAdminClient) -> None:
    assert await check_topics(kafka(bootstrap, prefix), TABLES) == []
    assert not [name for name in await admin.list_topics() if name.startswith(prefix)]


async def test_a_different_partition_count_is_refused(bootstrap: str, prefix: str, admin: AIOKafkaAdminClient) -> None:
    await ensure_topics(kafka(bootstrap, prefix, partitions=2), TABLES)
    with pytest.raises(TopicError, match=r"has 2 partitions, \[kafka\] partitions says 4; keys decide") as refused:
        await ensure_topics(kafka(bootstrap, prefix, partitions=4), TABLES)
    assert "set [kafka] partitions = 2" in refused.value.hint
    assert await partitions_of(admin, f"{prefix}.public.memories") == 2


async def test_wrong_settings_are_refused_and_left_alone(
    bootstrap: str, prefix: str, admin: AIOKafkaAdminClient
) -> None:
    config = kafka(bootstrap, prefix)
    topic = config.table_topic("public", "memories")
    wrong = {"cleanup.policy": "delete", "retention.ms": "3600000", "max.message.bytes": "100000"}
    await admin.create_topics([NewTopic(topic, config.partitions, 1, topic_configs=wrong)])
    while not (before := await settings_of(admin, topic)):  # the broker learns of it a little later
        pass
    with pytest.raises(TopicError, match=r"cleanup\.policy=delete, it needs compact") as refused:
        await ensure_topics(config, TABLES)
    assert "--alter --add-config cleanup.policy=compact" in refused.value.hint
    assert await settings_of(admin, topic) == before
    assert [n for n in await admin.list_topics() if n.startswith(prefix)] == [topic], "nothing else was created"
    problems = "\n".join(finding.problem for finding in await check_topics(config, TABLES))
    for name in ("cleanup.policy", "retention.ms", "delete.retention.ms", "max.message.bytes"):
        assert name in problems
    assert "retention.bytes" not in problems


async def test_two_starts_at_once_agree_or_one_is_refused(bootstrap: str, prefix: str) -> None:
    equal = await asyncio.gather(*(ensure_topics(kafka(bootstrap, prefix), TABLES) for _ in range(3)))
    assert equal == [equal[0]] * 3
    different = [kafka(bootstrap, f"{prefix}-b", partitions=count) for count in (2, 3)]
    answers = await asyncio.gather(*(ensure_topics(each, TABLES) for each in different), return_exceptions=True)
    assert sum(isinstance(answer, TopicError) for answer in answers) >= 1, answers
    assert all(isinstance(answer, dict | TopicError) for answer in answers), answers


async def test_more_than_needed_is_fine(bootstrap: str, prefix: str) -> None:
    await ensure_topics(kafka(bootstrap, prefix), TABLES)
    smaller = kafka(bootstrap, prefix, max_record_bytes=1 << 20)
    assert await ensure_topics(smaller, TABLES)


async def test_more_replicas_than_brokers(bootstrap: str, prefix: str) -> None:
    config = kafka(bootstrap, prefix, replication_factor=3)
    with pytest.raises(TopicError, match=r"cannot be created: .*replication factor of 3") as refused:
        await ensure_topics(config, TABLES)
    assert "lower [kafka] replication_factor = 3" in refused.value.hint
    assert await check_topics(config, TABLES)


async def test_in_sync_replicas_that_can_never_be(bootstrap: str, prefix: str) -> None:
    with pytest.raises(TopicError, match="nothing could ever be written"):
        await ensure_topics(kafka(bootstrap, prefix, min_insync_replicas=2), TABLES)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (("public", "my table"), "Kafka takes letters"),
        (("public", "x" * 250), "at most 249"),
        (("cdc", "progress"), "table cdc.progress and our own records would share"),
    ],
)
async def test_names_no_topic_can_have(bootstrap: str, table: tuple[str, str], told: str) -> None:
    with pytest.raises(TopicError, match=told):
        await ensure_topics(kafka(bootstrap, "p"), [table])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"bootstrap": "127.0.0.1:1"}, r"127\.0\.0\.1:1 cannot be reached"),
        ({"bootstrap": "no-such-host.invalid:9092"}, r"no-such-host\.invalid:9092 cannot be reached"),
        ({"security_protocol": "SSL"}, "does not answer a SSL client"),
        (
            {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "username": "u", "password": "p"},
            "does not answer a SASL_PLAINTEXT client|refuses the user name or password|does not offer PLAIN",
        ),
    ],
)
async def test_no_connection_is_one_sentence(bootstrap: str, settings: dict[str, Any], told: str) -> None:
    config = kafka(**{"bootstrap": bootstrap, "prefix": "p", **settings})
    with pytest.raises(ConnectError, match=told) as refused:
        await ensure_topics(config, TABLES)
    assert refused.value.hint
