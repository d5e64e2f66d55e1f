"""`cdc demo` as a script runs it: it proves the pipeline, tells when a store differs, and leaves nothing behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.acceptance.conftest import processes_of

STOP_SECONDS = 90  # an orderly stop takes two; only so that a broken one ends


BACKGROUND = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")  # as a script's `… &`: it begins with SIGINT ignored


@contextmanager
def running_demo(*by: str) -> Iterator[subprocess.Popen[str]]:
    """`cdc demo --json`, its progress in stderr; ended whatever the test did."""
    process = subprocess.Popen(
        [*by, sys.executable, "-m", "cdc.cli", "demo", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)


def progress(process: subprocess.Popen[str]) -> Iterator[str]:
    """Lines that the demo tells."""
    assert process.stderr is not None
    return iter(process.stderr.readline, "")


def folder_of(process: subprocess.Popen[str]) -> Path:
    """The data folder of a running demo, by the arguments of its child."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        found = re.search(rb"--data\0([^\0]+)", Path(f"/proc/{child}/cmdline").read_bytes())
        if found:
            return Path(found[1].decode())
    raise AssertionError("the demo has no `cdc up`")


def wait_for_step(process: subprocess.Popen[str], text: str) -> None:
    """Reads progress until a line with that text."""
    told = []
    for line in progress(process):
        told.append(line)
        if text in line:
            return
    raise AssertionError("".join(told))


def result(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    """Exit code and the JSON object; whatever is still told is read away."""
    output, errors = process.communicate()
    print(errors)
    return process.returncode, json.loads(output)


def test_demo_proves_the_pipeline_and_leaves_nothing() -> None:
    with running_demo() as process:
        wait_for_step(process, "texts by INSERT")
        folder = folder_of(process)
        assert processes_of(folder)
        code, found = result(process)
    assert code == 0, found
    assert found["equal"] is True
    assert found["error"] is None
    assert found["differences"] == {"redis": 0, "faiss": 0}
    rows = found["rows"]
    assert rows["postgresql"] == rows["redis"] == rows["faiss"] > found["texts"] > 1000
    assert found["applied_ms"].keys() == {"redis", "faiss"}
    assert all(0 < times["p50"] <= times["p99"] for times in found["applied_ms"].values())
    assert found["killed"]["behind"] > 0
    assert found["rebuild"]["records"] >= found["texts"]
    assert found["rebuild"]["search_ms_meanwhile"]["samples"] > 0
    assert found["servers"].keys() == {"postgres", "kafka", "redis"}
    assert processes_of(folder) == []
    assert not folder.exists()


def test_demo_fails_when_a_store_differs() -> None:
    with running_demo() as process:
        wait_for_step(process, "cdc rebuild faiss")
        folder = folder_of(process)
        settings = tomllib.loads((folder / "cdc.toml").read_text())
        with redis.Redis.from_url(settings["redis"]["url"]) as memory:
            key = next(memory.scan_iter("memory:????????-*"))
            assert memory.delete(key) == 1
        code, found = result(process)
    assert code == 1
    assert found["equal"] is False
    assert found["differences"] == {"redis": 1, "faiss": 0}
    assert found["rows"]["redis"] == found["rows"]["postgresql"] - 1
    assert processes_of(folder) == []


@pytest.mark.parametrize("by", [pytest.param((), id="alone"), pytest.param(BACKGROUND, id="in the background")])
def test_demo_stops_cleanly_when_interrupted(by: tuple[str, ...]) -> None:
    with running_demo(*by) as process:
        wait_for_step(process, "texts by INSERT")
        folder = folder_of(process)
        process.terminate()
        process.communicate()
    assert process.returncode == 130
    assert processes_of(folder) == []
    assert not folder.exists()
