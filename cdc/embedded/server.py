"""A server as a child process: started, waited for until it really answers, stopped or killed.

The child gets a session of its own, so that Ctrl-C reaches only us and we stop it in order. It dies with us, even when
we are killed (see leash.py). Linux ties that to the *thread* which forks, so all forks happen in one thread that lives
as long as we do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from cdc.embedded.account import Account
from cdc.embedded.folder import Folder
from cdc.embedded.identity import Identity
from cdc.errors import PreconditionError

START_SECONDS = 120.0  # recovery after a crash included
PROBE_SECONDS = 0.02  # between two questions whether it answers: below what a person notices
LEFTOVER_SECONDS = 30.0  # the servers of a killed parent need that long at most to end by themselves
KILL_SECONDS = 10.0  # SIGKILL works at once, unless the disk hangs
TAIL_LINES = 15

_forker = ThreadPoolExecutor(1, thread_name_prefix="forks-servers")


class Server(ABC):
    """One server in a data folder. `start` and `stop` may be called again and again: same port, same data."""

    name: str
    title: ClassVar[str]
    stop_signals: ClassVar[
        Sequence[tuple[signal.Signals, float]]
    ]  # from gentle to hard, with seconds to wait after each
    death_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, folder: Folder, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self.settings = dict(settings)
        self.account: Account | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._abandoned = threading.Event()

    @property
    @abstractmethod
    def provider(self) -> str:
        """Which program serves and where it comes from, for a person."""

    @abstractmethod
    def prepare(self) -> None:
        """Makes the data at the first start, writes the configuration at each."""

    @abstractmethod
    def command(self) -> list[str]:
        """Program (full path) and arguments; stays in the foreground and logs to stderr."""

    @abstractmethod
    def answers(self) -> bool:
        """One question to the server; True when it did what its clients will ask for."""

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.folder.log_file(self.name)

    @property
    def running(self) -> bool:
        """True while the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return self._process.pid if self._process is not None and self.running else None

    def start(self) -> None:
        """Returns when the server answers; raises PreconditionError with the log's end when it does not come up."""
        if self.running:
            return
        self._abandoned.clear()
        self._end_leftover()
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.1"))
        self.prepare()
        self._process = self._spawn(self.command())
        identity = Identity.of(self._process.pid)
        if identity:
            identity.write(self.folder.pid_file(self.name))
        self._await_answer()

    def stop(self) -> None:
        """Ends it cleanly; harder after a while. Nothing happens when it does not run."""
        process = self._process
        if process is None:
            return
        for number, seconds in (*self.stop_signals, (signal.SIGKILL, KILL_SECONDS)):
            if process.poll() is None:
                process.send_signal(number)
                try:
                    process.wait(seconds)
                except subprocess.TimeoutExpired:
                    continue
            break
        self._ended(process)

    def kill(self) -> None:
        """Ends it with all its processes as a crash would, without any chance to clean up."""
        process = self._process
        if process is None:
            return
        identity = Identity.of(process.pid)
        family = identity.descendants() if identity else []
        process.kill()
        for member in family:
            member.signal(signal.SIGKILL)
        process.wait(KILL_SECONDS)
        for member in family:
            member.wait(KILL_SECONDS)
        self._ended(process)

    def abandon(self) -> None:
        """Makes a `start` under way in another thread give up."""
        self._abandoned.set()

    def run(self, command: list[str]) -> None:
        """Runs a program of the server to its end, its output into the log; raises PreconditionError when it fails."""
        process = self._spawn(command)
        if process.wait(START_SECONDS) != 0:
            raise self._failure(f"{Path(command[0]).name} ended with code {process.returncode}")

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        account = self.account
        user = [str(account.uid), str(account.gid), account.name] if account else ["-1", "-1", "-"]
        leash = [sys.executable, "-I", "-S", str(Path(__file__).with_name("leash.py"))]
        arguments = [*leash, str(os.getpid()), str(int(self.death_signal)), *user, *command]
        with self.log.open("ab") as log:
            fork: Callable[[], subprocess.Popen[bytes]] = lambda: subprocess.Popen(  # noqa: E731
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env={**os.environ, "LC_ALL": "C.UTF-8"},
            )
            return _forker.submit(fork).result()

    def _await_answer(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            if not self.running:
                code = self._process.returncode if self._process else None
                raise self._failure(f"{self.title} ended with code {code} while it started")
            if time.monotonic() > deadline:
                raise self._failure(f"{self.title} did not answer within {START_SECONDS:.0f} s")
            if self._abandoned.wait(PROBE_SECONDS):
                raise PreconditionError(f"the start of {self.title} was given up")

    def _failure(self, what: str) -> PreconditionError:
        lines = self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:] if self.log.exists() else []
        end = "".join(f"\n  {line}" for line in lines)
        return PreconditionError(f"{what}; its log {self.log} ends:{end}\n", hint="mend what the log names")

    def _end_leftover(self) -> None:
        """The servers of a parent that was killed are about to end; two on one folder would spoil it."""
        leftover = Identity.read(self.folder.pid_file(self.name))
        if leftover is not None:
            end(leftover, self.stop_signals, LEFTOVER_SECONDS)

    def _ended(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is not None:
            self.folder.pid_file(self.name).unlink(missing_ok=True)
            self._process = None


def end(identity: Identity, stop_signals: Sequence[tuple[signal.Signals, float]], grace: float = 0.0) -> None:
    """Ends a process that is no child of ours: waits `grace` seconds, then signals from gentle to hard."""
    if identity.wait(grace):
        return
    for number, seconds in (*stop_signals, (signal.SIGKILL, KILL_SECONDS)):
        identity.signal(number)
        if identity.wait(seconds):
            return
