"""`cdc up` as a child in a folder of its own: what the demo shows is what a user gets."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from cdc.config import Config, load
from cdc.embedded import Servers, leash, stop_running
from cdc.embedded.folder import Folder
from cdc.embedded.identity import Identity
from cdc.errors import PreconditionError

STOP_SECONDS = 90.0  # far more than an orderly stop takes; then everything is ended by force


class Rig:
    """Use as a context manager. It ends with us, even when we are killed, unless it was told to `stay`."""

    def __init__(self, *, stay: bool) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="memory-cdc-demo-"))
        self.path.chmod(0o755)  # the servers' own account has to pass
        self._stay = stay
        self._log = self.path / "logs" / "up.log"
        self._log.parent.mkdir()
        self._process: subprocess.Popen[str] | None = None
        self.found: dict[str, Any] = {}
        self.logs: Path | None = None  # kept for a person when something failed

    def __enter__(self) -> Rig:
        try:
            self._start()
        except BaseException as error:
            self._end(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None or not self._stay:
            self._end(error)

    @property
    def config(self) -> Config:
        """What `cdc up` wrote."""
        return load(Path(self.found["config"]), {})

    @property
    def running(self) -> bool:
        """True while everything is up."""
        return self._process is not None and self._process.poll() is None

    def consumer(self, store: str) -> Identity | None:
        """The running consumer of a store."""
        return Identity.read(Folder(self.path).pid_file(f"consumer-{store}"))

    def _start(self) -> None:
        """Returns when everything answers. Raises PreconditionError with what `cdc up` said."""
        command = [sys.executable, "-m", "cdc.cli", "up", "--json", "--data", str(self.path)]
        if not self._stay:
            tied = [str(os.getpid()), str(int(signal.SIGTERM)), "-1", "-1", "-"]
            command = [sys.executable, "-I", "-S", leash.__file__, *tied, *command]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CDC_")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us; we stop it in order
                text=True,
                env=environment,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.found = json.loads(line) if line.strip() else {}
        if "gateway" not in self.found:
            raise PreconditionError(f"the pipeline did not start: {self._last_words()}", hint="run `cdc up` to see why")

    def _end(self, error: BaseException | None) -> None:
        """Ends every process and removes the folder; after a failure its logs are kept."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave servers behind
        try:
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()
                try:
                    self._process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
            stop_running(self.path)
            if isinstance(error, Exception):
                self.logs = Path(tempfile.mkdtemp(prefix="memory-cdc-demo-logs-"))
                shutil.copytree(self.path / "logs", self.logs, dirs_exist_ok=True)
            Servers(self.path).erase()
            shutil.rmtree(self.path, ignore_errors=True)
        finally:
            signal.signal(signal.SIGINT, before)

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return lines[-1].removeprefix("cdc: ") if lines else "it left no word"
