"""A small file system of a test's own that can be filled: its ENOSPC is a real one."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Disk:
    """What is mounted at `path`, and a file that takes its space."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def leave(self, free: int) -> None:
        """Fills it up to so many bytes, also while others write to it or remove files."""
        self.clear()
        with self._ballast.open("wb", buffering=0) as file:
            while (rest := self._available() - free) > 0:
                try:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), rest)
                except OSError as error:
                    if error.errno != errno.ENOSPC:  # somebody took some meanwhile: look again
                        raise

    def clear(self) -> None:
        """Space returns."""
        self._ballast.unlink(missing_ok=True)

    def _available(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize


@contextmanager
def mounted(path: Path, size: int) -> Iterator[Disk]:
    """A tmpfs of `size` bytes on a new folder, gone afterwards. Skips the test where this user may not mount."""
    program = shutil.which("mount")
    if program is None:
        pytest.skip("there is no `mount`, and so no small file system")
    path.mkdir()
    done = subprocess.run(
        [program, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True, text=True
    )
    if done.returncode:
        path.rmdir()
        pytest.skip(f"this user may not mount a small file system: {done.stderr.strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
        path.rmdir()
