"""Clocks that can be set while a process runs: libfaketime between a process and the system's clock.

Each process has a file with its clock's offset in seconds, which the library reads again every second. The monotonic
clock stays as it is, as it does when a person sets a machine's clock.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cdc.embedded import Server

LIBRARIES = "/usr/lib/*/faketime/libfaketimeMT.so.1"  # Debian's package libfaketime

# The library has `clock_nanosleep` fail with EINVAL until a moment of a clock that it moves, which is Python's sleep.
SLEEP = "import select, time\ntime.sleep = lambda seconds: select.select([], [], [], seconds)\n"


class Clock:
    """One process's clock."""

    def __init__(self, library: Path, folder: Path, name: str) -> None:
        self._file = folder / name
        self._library = library
        self.set(0)

    def set(self, seconds: int) -> None:
        """Ahead (or behind) by so much, within a second from now."""
        self._file.write_text(f"{seconds:+d}\n")

    @property
    def environment(self) -> dict[str, str]:
        """For the process whose clock it is."""
        return {
            "LD_PRELOAD": f"{self._library}:libc.so.6",  # libc's malloc first: Redis' asks for the time within itself
            "PYTHONPATH": str(self._file.parent),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # else a JVM's waits take many times what they should
        }

    @contextmanager
    def of(self, server: type[Server]) -> Iterator[None]:
        """For a server that is started inside. Its program alone: what runs as another user must not come before it."""
        original = server.command
        given = [f"{name}={value}" for name, value in self.environment.items()]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(server, "command", lambda server: ["/usr/bin/env", *given, *original(server)])
            yield


@contextmanager
def clocks(*names: str) -> Iterator[dict[str, Clock]]:
    """One clock a name. Skips the test where the library is missing."""
    found = sorted(Path("/").glob(LIBRARIES.removeprefix("/")))
    if not found:
        pytest.skip("libfaketime is not installed (Debian: apt-get install libfaketime)")
    folder = Path(tempfile.mkdtemp(prefix="clocks-"))
    os.chmod(folder, 0o755)  # PostgreSQL's own user reads its clock there
    (folder / "sitecustomize.py").write_text(SLEEP)
    try:
        yield {name: Clock(found[0], folder, name) for name in names}
    finally:
        shutil.rmtree(folder)
