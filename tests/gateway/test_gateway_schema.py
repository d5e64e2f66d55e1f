"""Whatever is sent, the gateway answers with a reason and never with a 5xx: requests made from its own OpenAPI."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from tests.command_line import CommandLine
from tests.gateway_rig import PIPELINE, counted, insert, running
from tests.waiting import until

EXAMPLES = int(os.environ.get("CDC_SCHEMA_EXAMPLES", "15"))  # an operation
KEY = "a key of more than sixteen characters"
JOBS = ("verify", "rebuild", "snapshot", "backfill", "repair")
WORK = tuple(f"/admin/{kind}" for kind in JOBS)  # not with the key, which would start it
CHECKS = [not_a_server_error, response_schema_conformance, content_type_conformance]


async def test_no_input_is_answered_by_a_server_error(command: CommandLine, data: dict[str, Any]) -> None:
    data["gateway"] |= {"stats_seconds": 2, "admin_key": KEY, "admin_per_minute": 1_000_000}
    command = CommandLine(command.folder, data)
    insert(data, 20)
    async with running(command, data, *PIPELINE) as client:
        await until(lambda: counted(client, 20), "20 rows everywhere")
        tried = await asyncio.to_thread(every_operation, str(client.base_url))
        print(f"{tried} requests")
        assert tried > EXAMPLES
        assert (await client.get("/ready")).json()["ready"]


def every_operation(address: str) -> int:
    """Calls each with what its schema allows and with what it forbids; how many calls that were."""
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    found = [operation.ok() for operation in schema.get_all_operations()]
    assert {"POST /search", "GET /stats", "GET /events", "POST /admin/verify"} <= {
        operation.label for operation in found
    }
    return sum(tried(operation, address) for operation in found)


def tried(operation: schemathesis.APIOperation, address: str) -> int:
    """How many requests of one operation were answered as they should be."""
    calls = 0
    headers = {} if operation.full_path in WORK else {"Authorization": f"Bearer {KEY}"}

    @given(operation.as_strategy(GenerationMode.POSITIVE) | operation.as_strategy(GenerationMode.NEGATIVE))
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def call(case: schemathesis.Case) -> None:
        nonlocal calls
        calls += 1
        if isinstance(case.body, dict) and {"min_lsn", "min_position"} & set(case.body):
            case.body["wait_seconds"] = 0.05  # for a position that never comes
        if operation.full_path == "/events":
            case.query = {**(case.query or {}), "seconds": 0.05}  # of a stream without an end
        answer = case.call_and_validate(base_url=address, checks=CHECKS, headers=headers)
        if operation.full_path in WORK:
            assert answer.status_code in (401, 422)
        if answer.status_code >= 400 and answer.status_code != 405 and case.method != "HEAD":
            assert answer.json()["detail"]

    call()
    return calls
