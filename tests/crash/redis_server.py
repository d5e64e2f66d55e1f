"""A bare redis-server of a test's own, with just the settings the test names: to be killed, copied and starved."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import redis

from cdc.embedded import programs
from cdc.embedded.folder import HOST, free_port
from tests.waiting import until

QUIET = {"save": "", "appendonly": "no", "daemonize": "no", "bind": HOST}  # memory only, unless asked otherwise


class RedisServer:
    """Starts with `start`; `client` speaks to it directly, past any proxy."""

    def __init__(self, folder: Path, **settings: str) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.port = free_port(set())
        self.settings = {**QUIET, "port": str(self.port), "dir": str(folder), **settings}
        self.client: Any = redis.Redis(HOST, self.port)
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self, *, wait: bool = True, **settings: str) -> None:
        """Returns once it answers; without `wait` once its port is taken, be it still loading."""
        command = [str(programs.redis("auto").path)]
        for name, value in {**self.settings, **settings}.items():
            command += [f"--{name.replace('_', '-')}", value]
        with (self.folder / "log").open("ab") as log:
            self._process = await asyncio.to_thread(subprocess.Popen, command, stdout=log, stderr=log)
        await until(lambda: self._answers(wait), "a Redis that answers")

    def _answers(self, wait: bool) -> bool:
        try:
            return bool(self.client.ping())
        except redis.BusyLoadingError:
            return not wait
        except redis.ConnectionError:
            return False

    def kill(self) -> None:
        """SIGKILL: nothing is written any more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """The end."""
        self.kill()
        self.client.close()
