"""Kafka's own ids of topics: a topic that was deleted and made anew has another one, and offsets of the old log mean
nothing in it. (KIP-516; Metadata request of version 10, which aiokafka does not have.)"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from io import BytesIO
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from cdc import log
from cdc.config import Kafka

LOG = log.get(__name__)
_GONE = 3  # UNKNOWN_TOPIC_OR_PARTITION
_TEXT = CompactString("utf-8")


class _Uuid(AbstractType[bytes]):  # type: ignore[misc]
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


class _Response(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(("id", Int32), ("host", _TEXT), ("port", Int32), ("rack", _TEXT), ("tags", TaggedFields)),
        ),
        ("cluster_id", _TEXT),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", _TEXT),
                ("topic_id", _Uuid),
                ("internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("in_sync", CompactArray(Int32)),
                        ("offline", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("operations", Int32),
        ("tags", TaggedFields),
    )


class _RequestStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _Response
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", _TEXT), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_operations", Boolean),
        ("include_topic_operations", Boolean),
        ("tags", TaggedFields),
    )


class _Request(Request[_RequestStruct]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: Collection[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_RequestStruct]) -> _RequestStruct:
        wanted: list[Any] = [(bytes(16), topic, {}) for topic in sorted(self._topics)]
        return request_struct_class(wanted, False, False, False, {})


async def topic_ids(kafka: Kafka, topics: Collection[str]) -> dict[str, str]:
    """Topic → its id in hex, of those that are there; {} from a broker older than 2.8, which has none. Raises
    KafkaError."""
    if not topics:
        return {}
    admin: Any = AIOKafkaAdminClient(**kafka.client_options())
    try:
        await admin.start()
        answer = await admin._send_request(_Request(topics))
    except NotImplementedError:
        LOG.warning("this broker has no topic ids, so that a topic made anew may go unnoticed", hint="use Kafka ≥ 2.8")
        return {}
    finally:
        await admin.close()
    found = {}
    for code, name, identity, *_rest in answer.topics:
        if code == 0:
            found[name] = uuid.UUID(bytes=identity).hex
        elif code != _GONE:
            error: type[KafkaError] = for_code(code)
            raise error(f"asking for the id of {name}")
    return found
