"""Which process a pid meant when it was written down: pids are reused, so a bare one must never be signalled.

An identity is the pid with its start time (clock ticks since boot, proc(5)) and the boot's id. Signals go through a
pidfd that is opened before the check, so that they cannot hit a later process of that number.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, for ever."""

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The running process of that number; None when there is none or it is only a zombie."""
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        state, *rest = text.rpartition(")")[2].split()  # the name before it may hold spaces and parentheses
        if state in "ZX":
            return None
        return cls(pid, int(rest[18]), Path("/proc/sys/kernel/random/boot_id").read_text().strip())

    @classmethod
    def read(cls, path: Path) -> Identity | None:
        """What `write` left there, if that process still runs."""
        try:
            identity = msgspec.json.decode(path.read_bytes(), type=cls)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        return identity if identity.alive() else None

    def write(self, path: Path) -> None:
        """Atomically, for another process to read."""
        draft = path.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(asdict(self)))
        draft.rename(path)

    def alive(self) -> bool:
        """True while exactly this process runs."""
        return Identity.of(self.pid) == self

    def signal(self, number: signal.Signals) -> None:
        """Signals it; nothing happens when it has ended."""
        with self._held() as handle:
            if handle is not None:
                try:
                    signal.pidfd_send_signal(handle, number)
                except ProcessLookupError:
                    return  # it ended between the check and the signal

    def wait(self, seconds: float) -> bool:
        """Waits for its end, also when it is no child of ours; False when it still runs."""
        with self._held() as handle:
            return handle is None or bool(select.select([handle], [], [], seconds)[0])

    def descendants(self) -> list[Identity]:
        """Its children, their children and so on, as they are now."""
        found: list[Identity] = []
        for task in Path(f"/proc/{self.pid}/task").glob("*/children"):
            try:
                children = [Identity.of(int(pid)) for pid in task.read_text().split()]
            except (FileNotFoundError, ProcessLookupError):
                continue  # that thread has ended, its children went to another
            for child in children:
                if child is not None:
                    found += [child, *child.descendants()]
        return found

    @contextmanager
    def _held(self) -> Iterator[int | None]:
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            yield handle if self.alive() else None
        finally:
            os.close(handle)
