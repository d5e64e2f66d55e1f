"""Kafka's users and access control lists, by the broker's own protocol: aiokafka has no call for the former.

Protocol: AlterUserScramCredentials (KIP-554) and CreateAcls (KIP-290) of the Kafka protocol guide.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import secrets
import shlex
from collections.abc import Iterable
from typing import Any, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import CompactArray, CompactBytes, CompactString, Int8, Int16, Int32, Schema, TaggedFields

SCRAM_SHA_512 = 2
ITERATIONS = 4096  # the least Kafka takes
ALLOW = 3
TYPES = {"topic": 2, "group": 3, "cluster": 4, "transactional-id": 5}
PATTERNS = {"literal": 3, "prefixed": 4}
OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Describe": 8, "DescribeConfigs": 10}


class AlterScramResponse(Response):
    API_KEY = 51
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            CompactArray(
                ("user", CompactString("utf-8")),
                ("error_code", Int16),
                ("error_message", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class AlterScramStruct(RequestStruct):
    FLEXIBLE_VERSION = True
    API_KEY = 51
    API_VERSION = 0
    RESPONSE_TYPE = AlterScramResponse
    SCHEMA = Schema(
        ("deletions", CompactArray(("name", CompactString("utf-8")), ("mechanism", Int8), ("tags", TaggedFields))),
        (
            "upsertions",
            CompactArray(
                ("name", CompactString("utf-8")),
                ("mechanism", Int8),
                ("iterations", Int32),
                ("salt", CompactBytes),
                ("salted_password", CompactBytes),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class AlterScram(Request[AlterScramStruct]):
    API_KEY = 51

    def __init__(self, user: str, password: str) -> None:
        salt = secrets.token_bytes(16)
        salted = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS)
        self._upsertion = (user, SCRAM_SHA_512, ITERATIONS, salt, salted, {})

    def build(self, request_struct_class: type[AlterScramStruct]) -> AlterScramStruct:
        return request_struct_class([], [self._upsertion], {})


class Acl(NamedTuple):
    """One line of `kafka-acls --add --allow-principal …`."""

    principal: str
    kind: str
    name: str
    pattern: str
    operations: tuple[str, ...]


def documented(text: str) -> list[Acl]:
    """The `kafka-acls` lines of a document, continued lines joined."""
    lines = re.findall(r"^ *kafka-acls (.*)$", re.sub(r"\\\n *", " ", text), re.MULTILINE)
    return [_parsed(shlex.split(line)) for line in lines]


def _parsed(words: list[str]) -> Acl:
    pairs = [(name, value) for name, value in itertools.pairwise(words) if name.startswith("--")]
    options = dict(pairs)
    kind = next(kind for kind in TYPES if f"--{kind}" in words)
    name = "kafka-cluster" if kind == "cluster" else options[f"--{kind}"]
    operations = tuple(value for name, value in pairs if name == "--operation")
    return Acl(options["--allow-principal"], kind, name, options.get("--resource-pattern-type", "literal"), operations)


async def administrate(bootstrap: str, users: dict[str, str], acls: Iterable[Acl]) -> None:
    """Creates users (name → password) and grants, over the broker's internal listener."""
    admin: Any = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await admin.start()
        for user, password in users.items():
            answer = await admin._send_to_controller(AlterScram(user, password))
            assert [code for _user, code, *_rest in answer.results] == [0], answer
        for acl in acls:
            for operation in acl.operations:
                request = CreateAclsRequest(
                    TYPES[acl.kind], acl.name, PATTERNS[acl.pattern], acl.principal, "*", OPERATIONS[operation], ALLOW
                )
                answer = await admin._send_to_controller(request)
                assert [code for code, _message in answer.creation_responses] == [0], answer
    finally:
        await admin.close()
