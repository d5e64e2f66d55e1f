"""Our topics: created with the right settings, checked at every start, never altered.

A difference is refused and named with its remedy, because the one who changed a setting had a reason that this program
cannot know.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from cdc.config import Kafka
from cdc.errors import TopicError
from cdc.kafka import failure
from cdc.kafka.topic_plan import Plan, plan

STORES = ("redis", "faiss", "reader")  # who has dead letters
PROPAGATION_SECONDS = 0.05  # between looks whether every broker knows a new topic


class Finding(NamedTuple):
    """Something that is not as it has to be, and how to mend it: two sentences for a person."""

    topic: str
    problem: str
    remedy: str


async def ensure_topics(
    kafka: Kafka, tables: Sequence[tuple[str, str]], stores: Sequence[str] = STORES
) -> dict[str, int]:
    """Creates what is missing, checks the rest; the tables' topics and their partition counts, as `Writer` takes them.

    Raises TopicError with the first difference and its remedy (and how many more there are), ConnectError.
    """
    plans = plan(kafka, tables, stores)
    async with _admin(kafka) as admin:
        existing = await _existing(admin, kafka, plans)
        _refuse(await _differences(admin, kafka, plans, existing))
        missing = [p for p in plans if p.name not in existing]
        refused, overtaken = await _create(admin, kafka, missing)
        _refuse(refused)
        known = await _propagated(admin, kafka, missing)
        _refuse(await _differences(admin, kafka, overtaken, known))
    return {p.name: p.partitions for p in plans if p.table}


async def check_topics(
    kafka: Kafka, tables: Sequence[tuple[str, str]], stores: Sequence[str] = STORES
) -> list[Finding]:
    """What `ensure_topics` would refuse, without creating anything. Raises TopicError (names), ConnectError."""
    plans = plan(kafka, tables, stores)
    async with _admin(kafka) as admin:
        existing = await _existing(admin, kafka, plans)
        findings = await _differences(admin, kafka, plans, existing)
        missing = [p for p in plans if p.name not in existing]
        refused, _overtaken = await _create(admin, kafka, missing, validate_only=True)
        return findings + refused


@asynccontextmanager
async def _admin(kafka: Kafka) -> AsyncIterator[Any]:
    timeout_ms = int(failure.CONNECT_SECONDS * 1000)
    admin = AIOKafkaAdminClient(request_timeout_ms=timeout_ms, **kafka.client_options())
    try:
        await failure.start(admin, kafka, "connecting")
        yield admin
    finally:
        await admin.close()


async def _existing(admin: Any, kafka: Kafka, plans: Iterable[Plan]) -> dict[str, list[Any]]:
    """Topic → its partitions. Asks for all topics, since asking for one by name may create it."""
    wanted = {p.name for p in plans}
    async with failure.bounded(kafka, "listing the topics"):
        return {t["topic"]: t["partitions"] for t in await admin.describe_topics() if t["topic"] in wanted}


async def _differences(
    admin: Any, kafka: Kafka, plans: Iterable[Plan], existing: Mapping[str, list[Any]]
) -> list[Finding]:
    """Everything about the existing topics that differs from the plan."""
    present = [p for p in plans if p.name in existing]
    if not present:
        return []
    resources = [ConfigResource(ConfigResourceType.TOPIC, p.name) for p in present]
    async with failure.bounded(kafka, "reading the topics' settings"):
        responses = await admin.describe_configs(resources)
    actual: dict[str, dict[str, str]] = {}
    for error_code, _message, _type, name, entries in (r for response in responses for r in response.resources):
        if error_code:
            raise failure.typed(kafka_errors.for_code(error_code)(), kafka, f"reading the settings of {name}")
        actual[name] = {entry[0]: entry[1] for entry in entries}
    return [f for p in present for f in _compare(p, kafka, existing[p.name], actual[p.name])]


def _compare(wanted: Plan, kafka: Kafka, partitions: list[Any], actual: Mapping[str, str]) -> Iterable[Finding]:
    name = wanted.name
    if len(partitions) != wanted.partitions:
        yield _partition_finding(wanted, len(partitions))
    replicas = min((len(p["replicas"]) for p in partitions), default=0)
    if replicas < kafka.replication_factor:
        yield Finding(
            name,
            f"topic {name} has {replicas} replicas, [kafka] replication_factor says {kafka.replication_factor}",
            "raise them by kafka-reassign-partitions, or set replication_factor to what the topic has",
        )
    for key, setting in wanted.settings.items():
        if key in actual and not setting.allows(actual[key]):
            least = "at least " if setting.rule == "least" else ""
            yield Finding(
                name,
                f"topic {name} has {key}={actual[key]}, it needs {least}{setting.value}",
                f"run kafka-configs --bootstrap-server {kafka.bootstrap} --entity-type topics --entity-name {name} "
                f"--alter --add-config {key}={_listed(setting.value)}, if nobody else relies on the other value",
            )


def _partition_finding(wanted: Plan, count: int) -> Finding:
    if not wanted.table:
        return Finding(
            wanted.name,
            f"topic {wanted.name} has {count} partitions, it needs {wanted.partitions}",
            "delete it if it is another program's, or choose another [kafka] prefix",
        )
    return Finding(
        wanted.name,
        f"topic {wanted.name} has {count} partitions, [kafka] partitions says {wanted.partitions}; keys decide the "
        "partition, so another count would break the order of each key's changes",
        f"set [kafka] partitions = {count}; to really change it, choose a new [kafka] prefix, which writes everything "
        "anew from a snapshot, and rebuild the stores from there",
    )


def _listed(value: str | int) -> str:
    return f"[{value}]" if "," in str(value) else str(value)


async def _create(
    admin: Any, kafka: Kafka, missing: Sequence[Plan], *, validate_only: bool = False
) -> tuple[list[Finding], list[Plan]]:
    """Creates them, or only asks the broker whether it would; what it refuses, and what someone else made meanwhile."""
    if not missing:
        return [], []
    if kafka.min_insync_replicas > kafka.replication_factor:
        problem = (
            f"[kafka] min_insync_replicas = {kafka.min_insync_replicas} is more than "
            f"replication_factor = {kafka.replication_factor}, so nothing could ever be written"
        )
        return [Finding(missing[0].name, problem, "lower min_insync_replicas or raise replication_factor")], []
    topics = [_new_topic(p, kafka.replication_factor) for p in missing]
    async with failure.bounded(kafka, "creating topics"):
        response = await admin.create_topics(topics, validate_only=validate_only)
    findings, overtaken = [], []
    for name, error_code, message in (entry[:3] for entry in response.topic_errors):
        error = kafka_errors.for_code(error_code)
        if error is kafka_errors.TopicAlreadyExistsError:
            overtaken += [p for p in missing if p.name == name]
        elif error is not kafka_errors.NoError:
            findings.append(_refused(name, error, message or error.__name__, kafka))
    return findings, overtaken


def _new_topic(wanted: Plan, replication_factor: int) -> Any:
    settings = {key: str(setting.value) for key, setting in wanted.settings.items()}
    return NewTopic(wanted.name, wanted.partitions, replication_factor, topic_configs=settings)


def _refused(name: str, error: type[Exception], message: str, kafka: Kafka) -> Finding:
    remedies: dict[type[Exception], str] = {
        kafka_errors.InvalidReplicationFactorError: f"start more brokers, or lower [kafka] replication_factor = "
        f"{kafka.replication_factor} to their number",
        kafka_errors.PolicyViolationError: "ask whoever runs the cluster, or let them create the topic",
        kafka_errors.InvalidTopicError: "choose another [kafka] prefix or rename the table",
    }
    denied = error in (kafka_errors.TopicAuthorizationFailedError, kafka_errors.ClusterAuthorizationFailedError)
    remedy = "allow this user to create topics" if denied else remedies.get(error, "mend what the broker says")
    return Finding(name, f"topic {name} cannot be created: {message.rstrip('.')}", remedy)


async def _propagated(admin: Any, kafka: Kafka, created: Sequence[Plan]) -> dict[str, list[Any]]:
    """The new topics' partitions, once the broker knows a leader for every one."""
    async with failure.bounded(kafka, "waiting for new topics to get their leaders"):
        while True:
            known = await _existing(admin, kafka, created)
            if all(p.name in known and all(x["leader"] >= 0 for x in known[p.name]) for p in created):
                return known
            await asyncio.sleep(PROPAGATION_SECONDS)


def _refuse(findings: Sequence[Finding]) -> None:
    if findings:
        first = findings[0]
        more = f" (and {len(findings) - 1} more, see `cdc doctor`)" if len(findings) > 1 else ""
        raise TopicError(first.problem + more, hint=first.remedy)
