"""Which topics there have to be, and with which settings.

Tables' topics are compacted and never expire, so that a replay from the beginning yields the whole present state.
Progress, heartbeat and wishes (control) are compacted too; dead letters are kept until someone deletes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from cdc.errors import TopicError
from cdc.servers import MIB, Kafka

Rule = Literal["equal", "least"]  # `least`: the topic may have more

DAY_MS = 86_400_000
# A store that was down for longer may have missed a delete whose tombstone is gone, and has to be rebuilt; a week
# outlives a long weekend, and costs one small record a deleted key.
DELETE_RETENTION_MS = 7 * DAY_MS
# Progress gets a record a transaction, and only closed segments are compacted: small ones keep reading it short.
SMALL_SEGMENT_BYTES = 4 * MIB
UNLIMITED = -1
FAR_FUTURE_MS = (1 << 63) - 1  # a source whose clock is ahead must not stop the stream; the default is an hour
NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")  # Kafka, Topic.validate


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


def plan(kafka: Kafka, tables: Sequence[tuple[str, str]], stores: Sequence[str]) -> list[Plan]:
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
        "max.message.bytes": Setting(kafka.dead_letter_bytes, "least"),
    }
    plans = [Plan(name, 1, control) for name in (kafka.progress_topic, kafka.heartbeat_topic, kafka.control_topic)]
    plans += [Plan(kafka.dead_letter_topic(store), 1, letters) for store in stores]
    plans += [Plan(kafka.table_topic(s, t), kafka.partitions, rows, table=f"{s}.{t}") for s, t in tables]
    _refuse_names(plans)
    return plans


def _refuse_names(plans: Sequence[Plan]) -> None:
    seen: dict[str, str] = {}
    for wanted in plans:
        owner = f"table {wanted.table}" if wanted.table else "our own records"
        if not NAME.fullmatch(wanted.name):
            raise TopicError(
                f"{owner} would need the topic {wanted.name!r}, but Kafka takes letters, digits, '.', '_' and '-', "
                "at most 249 of them",
                hint="rename the table, or leave it out of [postgres] tables",
            )
        if wanted.name in seen:
            raise TopicError(
                f"{owner} and {seen[wanted.name]} would share the topic {wanted.name}",
                hint="rename the table, or leave it out of [postgres] tables",
            )
        seen[wanted.name] = owner
