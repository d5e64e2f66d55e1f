"""`cdc up` as a user starts it, once for all acceptance tests that write by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cdc.embedded import Endpoints, Servers, stop_running
from tests.acceptance import town

STOP_SECONDS = 90  # an orderly stop takes two; only so that a broken one ends


class Pipeline(NamedTuple):
    """`found` is what `cdc up --json` printed."""

    data: Path
    found: dict[str, Any]
    process: subprocess.Popen[str]

    def cdc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command on the same configuration."""
        return cdc("--config", self.found["config"], *arguments)


def cdc(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`cdc ARGUMENTS` to its end."""
    return subprocess.run([sys.executable, "-m", "cdc.cli", *arguments], capture_output=True, text=True, check=False)


def processes_of(folder: Path) -> list[str]:
    """Command lines of running processes that name the folder in their arguments or work in it."""
    name, found = str(folder).encode(), []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                command = (process / "cmdline").read_bytes()
                if name in command or name in str((process / "cwd").readlink()).encode():
                    found.append(command.replace(b"\0", b" ").decode(errors="replace"))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it ended while we looked, or is somebody else's
    return found


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Servers, reader and both consumers; stopped and removed afterwards, whatever the tests did."""
    data = tmp_path_factory.mktemp("up")
    log = data / "up.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "cdc.cli", "up", "--json", "--data", str(data)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, log.read_text()
        yield Pipeline(data, json.loads(line), process)
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)
        process.stdout.close()
        stop_running(data)
        Servers(data).erase()


@pytest.fixture(scope="session")
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Servers, Endpoints]]:
    """PostgreSQL, Kafka and Redis to be stopped and started one by one; a test leaves them running."""
    yield from town.servers(tmp_path_factory.mktemp("town"))
