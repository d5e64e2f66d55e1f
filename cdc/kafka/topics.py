"""Our topics: created with the right settings, checked at every start, never altered.

Tables' topics are compacted and never expire, so that a replay from the beginning yields the whole present state. Progress and
heartbeat are compacted too, dead letters are kept until someone deletes them. A difference is refused and named with its
remedy, because the one who changed a setting had a reason that this program cannot know.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, NamedTuple

from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from cdc.config import MIB, Kafka
from cdc.errors import TopicError
from cdc.kafka import failure

Rule = Literal["equal", "least"]  # `least`: the topic may have more

STORES = ("redis", "faiss")
DAY_MS = 86_400_000
# A store that was down for longer may have missed a delete whose tombstone is gone, and has to be rebuilt; a week outlives
# a long weekend, and costs one small record a deleted key.
DELETE_RETENTION_MS = 7 * DAY_MS
# Progress gets a record a transaction, and only closed segments are compacted: small ones keep reading it short.
SMALL_SEGMENT_BYTES = 4 * MIB
UNLIMITED = -1
FAR_FUTURE_MS = (1 << 63) - 1  # a source whose clock is ahead must not stop the stream; the broker's default is an hour
DEAD_LETTER_EXTRA_BYTES = MIB  # reason and origin beside a record of the largest size
NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")  # Kafka, Topic.validate
PROPAGATION_SECONDS = 0.05  # between looks whether every broker knows a new topic


class Setting(NamedTuple):
    """What a topic's setting has to be."""

    value: str | int
    rule: Rule = "equal"

    def allows(self, actual: str) -> bool:
        """Whether the topic's own value will do; policies are sets."""
        if isinstance(self.value, str):
            return set(actual.split(",")) == set(self.value.split(","))
        return int(actual) == self.value or (self.rule == "least" and int(actual) > self.value)


class Plan(NamedTuple):
    """A topic as it has to be; `table` is empty for our own records."""

    name: str
    partitions: int
    settings: Mapping[str, Setting]
    table: str = ""


class Finding(NamedTuple):
    """Something that is not as it has to be, and how to mend it: two sentences for a person."""

    topic: str
    problem: str
    remedy: str


def plan(kafka: Kafka, tables: Sequence[tuple[str, str]], stores: Sequence[str] = STORES) -> list[Plan]:
    """Every topic of the configuration. Raises TopicError for a table whose name no topic can have."""
    common = {
        "min.insync.replicas": Setting(kafka.min_insync_replicas, "least"),
        "compression.type": Setting("producer"),
    }
    rows = common | {
        "cleanup.policy": Setting("compact"),
        "retention.ms": Setting(UNLIMITED),
        "retention.bytes": Setting(UNLIMITED),
        "delete.retention.ms": Setting(DELETE_RETENTION_MS, "least"),
        "max.message.bytes": Setting(kafka.max_record_bytes, "least"),
        "message.timestamp.after.max.ms": Setting(FAR_FUTURE_MS),
    }
    control = common | {"cleanup.policy": Setting("compact"), "segment.bytes": Setting(SMALL_SEGMENT_BYTES)}
    letters = common | {
        "cleanup.policy": Setting("delete"),
        "retention.ms": Setting(UNLIMITED),
        "retention.bytes": Setting(UNLIMITED),
        "max.message.bytes": Setting(kafka.max_record_bytes + DEAD_LETTER_EXTRA_BYTES, "least"),
    }
    plans = [Plan(kafka.progress_topic, 1, control), Plan(kafka.heartbeat_topic, 1, control)]
    plans += [Plan(kafka.dead_letter_topic(store), 1, letters) for store in stores]
    plans += [Plan(kafka.table_topic(s, t), kafka.partitions, rows, table=f"{s}.{t}") for s, t in tables]
    _refuse_names(plans)
    return plans


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
        _refuse(await _create(admin, kafka, missing))
        await _propagated(admin, kafka, missing)
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
        return findings + await _create(admin, kafka, missing, validate_only=True)


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


async def _create(admin: Any, kafka: Kafka, missing: Sequence[Plan], *, validate_only: bool = False) -> list[Finding]:
    """Creates them, or only asks the broker whether it would; what it refuses."""
    if not missing:
        return []
    if kafka.min_insync_replicas > kafka.replication_factor:
        problem = (
            f"[kafka] min_insync_replicas = {kafka.min_insync_replicas} is more than "
            f"replication_factor = {kafka.replication_factor}, so nothing could ever be written"
        )
        return [Finding(missing[0].name, problem, "lower min_insync_replicas or raise replication_factor")]
    topics = [_new_topic(p, kafka.replication_factor) for p in missing]
    async with failure.bounded(kafka, "creating topics"):
        response = await admin.create_topics(topics, validate_only=validate_only)
    findings = []
    for name, error_code, message in (e[:3] for e in response.topic_errors):
        error = kafka_errors.for_code(error_code)
        if error not in (kafka_errors.NoError, kafka_errors.TopicAlreadyExistsError):  # someone was faster: fine
            findings.append(_refused(name, error, message or error.__name__, kafka))
    return findings


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


async def _propagated(admin: Any, kafka: Kafka, created: Sequence[Plan]) -> None:
    """Returns once the broker knows a leader for every partition of the new topics."""
    async with failure.bounded(kafka, "waiting for new topics to get their leaders"):
        while True:
            known = {t["topic"]: t["partitions"] for t in await admin.describe_topics()} if created else {}
            if all(p.name in known and all(x["leader"] >= 0 for x in known[p.name]) for p in created):
                return
            await asyncio.sleep(PROPAGATION_SECONDS)


def _refuse(findings: Sequence[Finding]) -> None:
    if findings:
        first = findings[0]
        more = f" (and {len(findings) - 1} more, see `cdc doctor`)" if len(findings) > 1 else ""
        raise TopicError(first.problem + more, hint=first.remedy)


def _refuse_names(plans: Sequence[Plan]) -> None:
    seen: dict[str, str] = {}
    for wanted in plans:
        owner = f"table {wanted.table}" if wanted.table else "our own records"
        if not NAME.fullmatch(wanted.name):
            raise TopicError(
                f"{owner} would need the topic {wanted.name!r}, but Kafka takes letters, digits, '.', '_' and '-' only, "
                "at most 249 of them",
                hint="rename the table, or leave it out of [postgres] tables",
            )
        if wanted.name in seen:
            raise TopicError(
                f"{owner} and {seen[wanted.name]} would share the topic {wanted.name}",
                hint="rename the table, or leave it out of [postgres] tables",
            )
        seen[wanted.name] = owner
