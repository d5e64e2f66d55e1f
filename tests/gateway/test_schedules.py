"""Schedules: run when due, remembered by PostgreSQL and not by the process, one of a name at a time, and told."""

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests.command_line import CommandLine
from tests.gateway_rig import execute, running
from tests.waiting import until, wait_until

STANDING = "SELECT last_run, last_success, last_error, first_seen FROM cdc.schedules WHERE name = %s"
RUNS = "SELECT state, error, after->'result' FROM cdc.jobs WHERE asked_by = %s ORDER BY created_at"
OFF = {"CDC_SCHEDULE__VERIFY__ENABLED": "false", "CDC_SCHEDULE__PRUNE__ENABLED": "false"}


def beat(command: CommandLine, data: dict[str, Any], every: str = "1s", kind: str = "prune") -> CommandLine:
    """One schedule more, of this name."""
    data["schedule"] = {"beat": {"kind": kind, "every": every}}
    return CommandLine(command.folder, data)


async def entry(client: httpx.AsyncClient, name: str = "beat") -> dict[str, Any]:
    answer = await client.get("/schedules")
    assert answer.status_code == 200, answer.text
    return dict(next(found for found in answer.json() if found["name"] == name))


async def samples(data: dict[str, Any]) -> str:
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(f"http://127.0.0.1:{data['metrics']['gateway_port']}/metrics")).text


async def test_it_runs_again_and_again_and_is_told(command: CommandLine, data: dict[str, Any]) -> None:
    command = beat(command, data)
    async with running(command, data) as client:
        succeeded = "SELECT count(*) FROM cdc.jobs WHERE asked_by = 'schedule beat' AND state = 'succeeded'"
        await until(lambda: execute(data, succeeded)[0][0] >= 2, "two runs")

        async def told() -> bool:
            return bool((await entry(client))["last_success"])

        await until(told, "the success in /schedules")
        found = await entry(client)
        assert (found["kind"], found["period_seconds"], found["error"]) == ("prune", 1.0, None)
        daily = {one["name"]: one["period_seconds"] for one in (await client.get("/schedules")).json()}
        assert daily == {"beat": 1.0, "prune": 86400.0, "verify": 86400.0}
        lines = (await samples(data)).splitlines()
        assert 'cdc_schedule_period_seconds{schedule="verify"} 86400.0' in lines
        assert any(line.startswith('cdc_schedule_runs_total{outcome="succeeded",schedule="beat"} ') for line in lines)
        shown = command.json("status", code=1)["schedules"]
        assert {one["name"] for one in shown} == {"beat", "prune", "verify"}
    seen = command.json("status", code=1)  # neither it nor anything else runs
    assert seen["processes"]["gateway"].get("optional")
    assert "not running" in command.run("status").stdout
    named = CommandLine(command.folder, data | {"gateway": data["gateway"] | {"address": "127.0.0.1:1"}})
    assert "optional" not in named.json("status", code=1)["processes"]["gateway"]
    kinds = execute(data, "SELECT DISTINCT actor, action, origin FROM cdc.audit")
    assert kinds == [("schedule beat", "/admin/prune", "gateway")]
    overlapping = (
        "SELECT count(*) FROM cdc.jobs a JOIN cdc.jobs b ON a.id < b.id"
        " AND tstzrange(a.started_at, a.ended_at) && tstzrange(b.started_at, b.ended_at)"
    )
    assert execute(data, overlapping) == [(0,)]


async def test_what_is_overdue_runs_once_at_the_start(command: CommandLine, data: dict[str, Any]) -> None:
    """A day's schedule, whose gateway was away for a week; before that it has to wait its day."""
    command = beat(command, data, "1d")
    async with running(command, data) as client:
        await until(lambda: len(execute(data, STANDING, ["beat"])) == 1, "the schedule in PostgreSQL")
        found = await entry(client)
        assert datetime.fromisoformat(found["next_run"]) > datetime.now(UTC) + timedelta(hours=23)
    week = "UPDATE cdc.schedules SET first_seen = first_seen - interval '8 days', last_run = now() - interval '7 days'"
    execute(data, week + ", last_success = now() - interval '7 days'")
    async with running(command, data) as client:
        await until(lambda: len(execute(data, RUNS, ["schedule beat"])) == 1, "the overdue run")

        async def settled() -> bool:
            found = await entry(client)
            return found["job"] is None and found["last_job"] is not None

        await until(settled, "its end")
        found = await entry(client)
        assert datetime.fromisoformat(found["last_success"]) > datetime.now(UTC) - timedelta(minutes=5)
        assert datetime.fromisoformat(found["next_run"]) > datetime.now(UTC) + timedelta(hours=23)
    async with running(command, data):
        pass  # a start more, and nothing is due
    assert [state for state, *_ in execute(data, RUNS, ["schedule beat"])] == ["succeeded"]


async def test_a_restart_does_not_set_the_clock_back(command: CommandLine, data: dict[str, Any]) -> None:
    """Never succeeded: it counts from when it was first asked for, and one that leaves the configuration is let go."""
    command = beat(command, data, "1d")
    async with running(command, data):
        await until(lambda: len(execute(data, STANDING, ["beat"])) == 1, "the schedule in PostgreSQL")
    execute(data, "UPDATE cdc.schedules SET first_seen = now() - interval '20 hours' WHERE name = 'beat'")
    [(_, _, _, first_seen)] = execute(data, STANDING, ["beat"])
    async with running(command, data) as client:
        start = 'cdc_schedule_last_success_timestamp_seconds{schedule="beat"} '

        async def shown() -> bool:
            found = [line.removeprefix(start) for line in (await samples(data)).splitlines() if line.startswith(start)]
            return bool(found) and abs(float(found[0]) - first_seen.timestamp()) < 0.001

        await until(shown, "the age since it was first asked for")
        assert (await entry(client))["last_success"] is None
    del data["schedule"]
    async with running(CommandLine(command.folder, data), data) as client:
        enabled = "SELECT enabled FROM cdc.schedules WHERE name = 'beat'"
        await until(lambda: execute(data, enabled) == [(False,)], "it is let go")
        assert "beat" not in [one["name"] for one in (await client.get("/schedules")).json()]
        assert 'schedule="beat"' not in await samples(data)


async def test_of_two_gateways_one_does_it(command: CommandLine, data: dict[str, Any], tmp_path: Path) -> None:
    command = beat(command, data, "1d")
    async with running(command, data):
        await until(lambda: len(execute(data, STANDING, ["beat"])) == 1, "the schedule in PostgreSQL")
    execute(data, "UPDATE cdc.schedules SET first_seen = now() - interval '3 days'")
    (tmp_path / "other").mkdir()
    own = {"gateway": {**data["gateway"], "port": 0}, "metrics": {**data["metrics"], "gateway_port": 0}}
    other = CommandLine(tmp_path / "other", {**data, **own})
    with other.running("gateway"):
        async with running(command, data) as client:

            async def done() -> bool:
                return bool((await entry(client))["last_success"])

            await until(done, "the overdue run")
    assert [state for state, *_ in execute(data, RUNS, ["schedule beat"])] == ["succeeded"]


def program(folder: Path, script: str) -> str:
    """An executable of these lines."""
    path = folder / "backfill"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def arguments(argv: list[str], seconds: float = 60.0) -> str:
    words = ", ".join(f'"{word}"' for word in argv)
    return f"{{argv = [{words}], seconds = {seconds}}}"


@pytest.mark.parametrize(
    ("script", "seconds", "state", "told"),
    [
        ("echo began >&2; test \"$1\" = '$HOME; true' && echo 12 rows >&2", 60.0, "succeeded", "12 rows"),
        ("echo began >&2; echo the outside is away >&2; exit 7", 60.0, "failed", "exit code 7: the outside is away"),
        ("sleep 600 & wait", 5.0, "failed", "longer than 5 s"),
    ],
)
async def test_a_command_is_judged_by_how_it_ends(
    command: CommandLine, data: dict[str, Any], tmp_path: Path, script: str, seconds: float, state: str, told: str
) -> None:
    """No shell reads its arguments, and nothing is left of it."""
    command = beat(command, data, "1s", "command")
    argv = [program(tmp_path, f"echo $$ > {tmp_path}/group; {script}"), "$HOME; true"]
    with command.running("gateway", CDC_SCHEDULE__BEAT__ARGUMENTS=arguments(argv, seconds)):
        ended = "SELECT count(*) FROM cdc.jobs WHERE ended_at IS NOT NULL AND asked_by = 'schedule beat'"
        await until(lambda: execute(data, ended)[0][0] >= 1, "a run's end")
        settled = "SELECT last_success IS NOT NULL, last_error FROM cdc.schedules WHERE name = 'beat'"
        await until(lambda: execute(data, settled) not in ([(False, None)], []), "what the schedule tells")
    [(how, error, result), *_] = execute(data, RUNS, ["schedule beat"])
    assert how == state
    assert told in (error or result["said"])
    assert_gone(int((tmp_path / "group").read_text()))


async def test_a_command_ends_with_its_gateway(command: CommandLine, data: dict[str, Any], tmp_path: Path) -> None:
    command = beat(command, data, "1s", "command")
    argv = [program(tmp_path, f"echo $$ > {tmp_path}/begun; mv {tmp_path}/begun {tmp_path}/group; sleep 600 & wait")]
    with command.running("gateway", CDC_SCHEDULE__BEAT__ARGUMENTS=arguments(argv)) as gateway:
        await until((tmp_path / "group").exists, "the command runs")
        gateway.send_signal(signal.SIGTERM)
    assert_gone(int((tmp_path / "group").read_text()))
    [(state, error, _)] = execute(data, RUNS, ["schedule beat"])
    assert (state, error) == ("failed", "the gateway was stopped while it ran")


def assert_gone(group: int) -> None:
    """None of the group runs; one that was killed may still wait to be collected by whoever adopted it."""

    def runs(process: Path) -> bool:
        try:
            state, _parent, leader = (process / "stat").read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return int(leader) == group and state not in "ZX"

    wait_until(lambda: not any(map(runs, Path("/proc").glob("[0-9]*"))), "all of the group have ended")


def test_arguments_are_checked_before_anything_starts(command: CommandLine, data: dict[str, Any]) -> None:
    command = beat(command, data, "1d", "rebuild")
    said = command.refusal("gateway")
    assert "[schedule.beat] arguments.store: Field required" in said
    findings = command.json("doctor", code=1)["findings"]
    assert [f["level"] for f in findings if "schedule.beat" in f["text"]] == ["error"]


async def test_without_the_control_schema_it_says_so(command: CommandLine, data: dict[str, Any]) -> None:
    with psycopg.connect(data["postgres"]["dsn"], autocommit=True) as connection:
        connection.execute("DROP SCHEMA cdc CASCADE")
    async with running(beat(command, data), data) as client:
        answer = await client.get("/schedules")
        assert answer.status_code == 503
        assert "cdc init" in answer.json()["detail"]
