"""Kafka: reachable, credentials, our topics' settings, the brokers' limits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from cdc.config import Config, Kafka
from cdc.doctor.finding import Finding, error, ok
from cdc.kafka import failure
from cdc.kafka.topics import check_topics

AREA = "kafka"


async def check(config: Config, tables: Sequence[tuple[str, str]]) -> AsyncIterator[Finding]:
    """Raises ConnectError, TopicError."""
    kafka = config.kafka
    brokers, limits = await _limits(kafka)
    yield ok(AREA, f"Kafka at {kafka.bootstrap} answers with {brokers} broker{'s' if brokers > 1 else ''}")
    for finding in _refused(kafka, brokers, limits):
        yield finding
    differences = await check_topics(kafka, tables)
    for difference in differences:
        yield error(AREA, difference.problem, difference.remedy)
    if not differences:
        yield ok(AREA, "the topics are as they have to be, or can be made so")


def _refused(kafka: Kafka, brokers: int, limits: dict[str, int]) -> list[Finding]:
    found = []
    if kafka.replication_factor > brokers:
        found.append(
            error(
                AREA,
                f"[kafka] replication_factor = {kafka.replication_factor}, but there are only {brokers} brokers",
                "start more brokers, or lower replication_factor",
            )
        )
    request = limits.get("socket.request.max.bytes")
    if request is not None and request <= kafka.max_record_bytes:
        found.append(
            error(
                AREA,
                f"the broker takes requests of {request} bytes, a record may have {kafka.max_record_bytes}",
                "raise the broker's socket.request.max.bytes, or lower [kafka] max_record_bytes",
            )
        )
    longest = limits.get("transaction.max.timeout.ms")
    if longest is not None and longest < kafka.transaction_timeout_seconds * 1000:
        found.append(
            error(
                AREA,
                f"the broker allows transactions of {longest / 1000:g} s, [kafka] transaction_timeout_seconds is "
                f"{kafka.transaction_timeout_seconds:g}",
                "lower transaction_timeout_seconds, or raise the broker's transaction.max.timeout.ms",
            )
        )
    return found


async def _limits(kafka: Kafka) -> tuple[int, dict[str, int]]:
    """Number of brokers, and the whole-number settings of one; none where the role may not read them."""
    admin: Any = AIOKafkaAdminClient(request_timeout_ms=int(failure.CONNECT_SECONDS * 1000), **kafka.client_options())
    try:
        await failure.start(admin, kafka, "connecting")
        async with failure.bounded(kafka, "reading the broker's settings"):
            cluster = await admin.describe_cluster()
            brokers = [broker["node_id"] for broker in cluster["brokers"]]
            resource = ConfigResource(ConfigResourceType.BROKER, str(brokers[0]))
            responses = await admin.describe_configs([resource])
    finally:
        await admin.close()
    entries = [entry for response in responses for answer in response.resources for entry in answer[4]]
    return len(brokers), {entry[0]: int(entry[1]) for entry in entries if (entry[1] or "").isdigit()}
