"""`cdc` as a user runs it: processes of their own, with a configuration file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cdc.embedded.folder import free_port
from tests.waiting import LIMIT_SECONDS


def toml_of(data: Mapping[str, Any]) -> str:
    """Sections of plain values; a JSON value is a TOML value."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in data.items() if not isinstance(value, Mapping)]
    for section, values in data.items():
        if not isinstance(values, Mapping):
            continue
        nested = {f'{section}."{name}"': table for name, table in values.items() if isinstance(table, Mapping)}
        for title, table in (nested or {section: values}).items():
            lines += [f"[{title}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def free_ports() -> dict[str, dict[str, int]]:
    """The sections [metrics], [index] and [gateway] with a port for each process."""
    ports: dict[str, int] = {}
    for name in ("reader_port", "redis_port", "faiss_port", "gateway_port", "index", "gateway"):
        ports[name] = free_port(set(ports.values()))
    return {"index": {"port": ports.pop("index")}, "gateway": {"port": ports.pop("gateway")}, "metrics": ports}


def peak_bytes(pid: int) -> int:
    """The most memory a process ever held (VmHWM, proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


class CommandLine:
    """`cdc --config FILE …`."""

    def __init__(self, folder: Path, data: Mapping[str, Any]) -> None:
        self.folder = folder
        self.path = folder / "cdc.toml"
        self.path.write_text(toml_of(data))
        self._prefix = [sys.executable, "-m", "cdc.cli", "--config", str(self.path)]
        self._environment = {**os.environ, "COLUMNS": "200"}

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """To its end; never with a traceback."""
        done = subprocess.run(
            [*self._prefix, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=3 * LIMIT_SECONDS,
            cwd=self.folder,
            env={**self._environment, **environment},
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return done

    def refusal(self, *arguments: str, **environment: str) -> str:
        """What a command that a person has to help says: one line, with a remedy."""
        done = self.run(*arguments, **environment)
        assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
        said = [line for line in done.stderr.splitlines() if line.startswith("cdc: ")]
        assert len(said) == 1, done.stderr
        assert " → " in said[0], said
        return said[0]

    def json(self, *arguments: str, code: int = 0) -> Any:
        """What it prints with --json."""
        done = self.run(*arguments, "--json")
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return json.loads(done.stdout)

    @contextmanager
    def running(self, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """A process that goes on; ended by SIGTERM, its output in a file beside the configuration."""
        with (self.folder / f"{'-'.join(arguments)}.log").open("ab") as log:
            process = subprocess.Popen(
                [*self._prefix, *arguments],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**self._environment, **environment},
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(LIMIT_SECONDS)
