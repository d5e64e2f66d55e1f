"""Programs under test as processes of their own, and what the kernel says about them."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from cdc.embedded.identity import Identity

STOP_SECONDS = 20.0  # a consumer's last flush; more means it hangs
SHOWN = 2000  # characters of its log when a child failed
TICKS = os.sysconf("SC_CLK_TCK")  # a second, in /proc/PID/stat
KIB = 1024


class ChildFailed(Exception):
    """A process under test ended by itself; the end of its log follows."""


class Child:
    """A running process. Its standard output comes by `line`; its log is shown when it fails."""

    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, text=True, env={**os.environ, **(environment or {})}
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def look(self) -> None:
        """Raises ChildFailed when it ended in error."""
        if self._process.poll() not in (None, 0):
            raise ChildFailed(f"{self._process.args!r} ended with {self._process.returncode}:\n{self._tail()}")

    def ended(self) -> bool:
        """True once it ended well. Raises ChildFailed."""
        self.look()
        return self._process.poll() == 0

    def line(self, timeout: float) -> str:
        """The next line of its output. Raises ChildFailed when there is none any more, TimeoutError."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(f"no answer within {timeout} s:\n{self._tail()}") from None
        if line is None:
            self._process.wait()
            raise ChildFailed(f"ended early with {self._process.returncode}:\n{self._tail()}")
        return line

    def answer(self, timeout: float) -> Any:
        """The next line, as JSON."""
        return json.loads(self.line(timeout))

    def cpu_seconds(self) -> float:
        """User and system time so far, of the process and all it started (proc(5), stat fields 14 to 17)."""
        return sum(map(cpu_seconds, self._tree()))

    def peak_bytes(self) -> int:
        """The most memory that was resident (proc(5), VmHWM), added up over the process and those it started."""
        return sum(_peak_kib(pid) for pid in self._tree()) * KIB

    def _tree(self) -> list[int]:
        ours = Identity.of(self._process.pid)
        return [] if ours is None else [ours.pid, *(child.pid for child in ours.descendants())]

    def stop(self) -> None:
        """SIGTERM, as a service manager does; SIGKILL when that does not help."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._thread.join()
        self._log.close()

    def _tail(self) -> str:
        end = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, end - SHOWN))
        return self._log.read().decode(errors="replace")


def cpu_seconds(pid: int) -> float:
    """User and system time so far, with that of its children that have ended; 0 when it ended just now, for then it is
    its parent's."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(map(int, fields[11:15])) / TICKS


def _peak_kib(pid: int) -> int:
    """0 when it has ended, or is only a zombie."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    _, found, rest = status.partition("VmHWM:")
    return int(rest.split()[0]) if found else 0


def role(name: str, config: dict[str, Any], folder: Path, *arguments: str) -> Child:
    """Starts one of the roles of `benchmarks.roles` with a configuration."""
    path = folder / f"{name}-{time.monotonic_ns()}.json"
    path.write_text(json.dumps(config))
    return Child([sys.executable, "-m", "benchmarks.roles", name, str(path), *arguments])
