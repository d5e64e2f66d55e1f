"""Redis as a child process: every write in an append-only file, and no eviction, since a working memory is no cache."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from urllib.parse import quote

import redis as client

from cdc.embedded.folder import HOST, Folder
from cdc.embedded.programs import Program
from cdc.embedded.server import Server

PROBE_TIMEOUT_SECONDS = 5.0


class Redis(Server):
    """`settings` are redis.conf's; `requirepass` among them appears in `url`."""

    name = "redis"
    title = "Redis"
    stop_signals = ((signal.SIGTERM, 20.0),)  # it writes and fsyncs its append-only file

    def __init__(self, folder: Folder, settings: Mapping[str, str], program: Program, port: int) -> None:
        super().__init__(folder, settings)
        self.program = program
        self.port = port

    @property
    def provider(self) -> str:
        return str(self.program)

    @property
    def url(self) -> str:
        """For redis-py and `redis-cli -u`."""
        password = self.settings.get("requirepass")
        login = f":{quote(password, safe='')}@" if password else ""
        return f"redis://{login}{HOST}:{self.port}/0"

    def prepare(self) -> None:
        """Its folder and redis.conf."""
        data = self.folder.path / "redis"
        data.mkdir(exist_ok=True)
        settings = {
            "bind": HOST,
            "port": str(self.port),
            "dir": str(data),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "everysec",  # a second's writes may go with the machine; the topics hold them
            "save": "",  # no snapshots beside the append-only file
            "maxmemory-policy": "noeviction",
            **self.settings,
        }
        text = "".join(f'{name} "{_escaped(value)}"\n' for name, value in settings.items())
        (data / "redis.conf").write_text(text)

    def command(self) -> list[str]:
        """redis-server in the foreground."""
        return [str(self.program.path), str(self.folder.path / "redis" / "redis.conf")]

    def answers(self) -> bool:
        """PING; a server that still loads its file refuses it."""
        connection = client.Redis.from_url(self.url, socket_timeout=PROBE_TIMEOUT_SECONDS)
        try:
            return bool(connection.ping())
        except (client.ConnectionError, client.TimeoutError):  # BusyLoadingError is a ConnectionError
            return False
        finally:
            connection.close()


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')
