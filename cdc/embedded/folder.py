"""The data folder: who uses it, which ports and password its servers have, where their logs and pids are."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
from pathlib import Path

import msgspec

from cdc.embedded.identity import Identity
from cdc.errors import PreconditionError

HOST = "127.0.0.1"
# Below Linux's range for outgoing connections (32768 and up): no client takes the port while its server restarts.
PORTS = range(15_000, 32_000)
ATTEMPTS = 100  # one free port among so many random ones is certain unless the machine is full


class Folder:
    """`path` belongs to the process that holds its lock; the lock ends with the process."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: int | None = None

    def lock(self) -> None:
        """Makes the folder ours; raises PreconditionError when another process uses it."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in ("logs", "run"):
            (self.path / name).mkdir(exist_ok=True)
        handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            owner = Identity.read(self.pid_file("owner"))
            who = f"process {owner.pid}" if owner else "another process"
            raise PreconditionError(
                f"the servers in {self.path} already run, started by {who}",
                hint="use those, stop them with `cdc down`, or name another folder",
            ) from error
        self._lock = handle
        ourselves = Identity.of(os.getpid())
        if ourselves:
            ourselves.write(self.pid_file("owner"))

    def unlock(self) -> None:
        """Gives the folder back; nothing happens when it is not ours."""
        if self._lock is not None:
            self.pid_file("owner").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def pid_file(self, name: str) -> Path:
        """Holds the Identity of a server, or of the `owner`."""
        return self.path / "run" / f"{name}.pid"

    def log_file(self, name: str) -> Path:
        """What a server wrote since its last start; the start before is beside it as .log.1."""
        return self.path / "logs" / f"{name}.log"

    def password(self) -> str:
        """PostgreSQL's, random, made once and readable for this user only."""
        path = self.path / "password"
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(24))  # 192 bits, and nothing a URL has to escape
        except FileExistsError:
            pass  # made by an earlier start
        return path.read_text()

    def ports(self, names: tuple[str, ...]) -> dict[str, int]:
        """A free port for each name: the one it had last time where that is free."""
        path = self.path / "ports.json"
        remembered = msgspec.json.decode(path.read_bytes(), type=dict[str, int]) if path.exists() else {}
        for name in names:
            others = {port for other, port in remembered.items() if other != name}
            if name not in remembered or not is_free(remembered[name]):
                remembered[name] = free_port(others)
        draft = path.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(remembered))
        draft.rename(path)
        return {name: remembered[name] for name in names}


def is_free(port: int) -> bool:
    """True when a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: TIME_WAIT does not count
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def free_port(taken: set[int]) -> int:
    """A random free port that is not in `taken`."""
    for _ in range(ATTEMPTS):
        port = PORTS.start + secrets.randbelow(len(PORTS))
        if port not in taken and is_free(port):
            return port
    raise PreconditionError(
        f"no free port found between {PORTS.start} and {PORTS.stop} on {HOST}", hint="stop some servers"
    )
