"""A PostgreSQL of a test's own, whose files can be copied, put back and promoted; always the same address and password.

Work runs in a thread, so that a pipeline in the test's event loop goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import psycopg

from cdc.config import Config
from cdc.embedded import Endpoints, Servers
from cdc.embedded.folder import Folder
from cdc.embedded.postgres import Postgres
from cdc.position import parse_lsn
from tests.pipeline import MEMORIES, config_of
from tests.waiting import until


class Cluster:
    """`server` may be exchanged for another one on the same port."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._servers = Servers(folder / "own", only=("postgres",), settings={"postgres": settings or {}})
        self.dsn = self._servers.start().postgres_dsn
        self.server = cast(Postgres, self._servers["postgres"])
        self.spares: list[Postgres] = []

    def erase(self) -> None:
        """Ends all servers and removes their files."""
        for spare in self.spares:
            spare.stop()
            shutil.rmtree(spare.home)
        self._servers.erase()

    async def start(self) -> None:
        await asyncio.to_thread(self.server.start)

    async def stop(self) -> None:
        await asyncio.to_thread(self.server.stop)

    async def immediate(self) -> None:
        """As `pg_ctl stop -m immediate`: no checkpoint, recovery at the next start."""
        assert self.server.pid is not None
        os.kill(self.server.pid, signal.SIGQUIT)
        await until(lambda: not self.server.running, "the end of PostgreSQL")

    async def kill(self) -> None:
        """SIGKILL to the postmaster and all its processes."""
        await asyncio.to_thread(self.server.kill)

    def run(self, program: str, *arguments: str) -> None:
        """One of PostgreSQL's programs, as its account."""
        self.server.run([str(self.server.program.bin / program), *arguments])

    def query(self, statement: str, dsn: str = "") -> str:
        """The first value of a statement's answer, as text; '' for none."""
        with psycopg.connect(dsn or self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            row = cursor.fetchone() if cursor.description else None
        return "" if row is None else str(row[0])

    def lsn(self, dsn: str = "") -> int:
        """Where the server writes next."""
        return parse_lsn(self.query("SELECT pg_current_wal_insert_lsn()", dsn))

    def empty_table(self) -> None:
        """`memories`, made anew."""
        self.query("DROP TABLE IF EXISTS memories")
        self.query(MEMORIES)

    async def saved(self) -> Path:
        """A copy of the files of the server, which is stopped for it."""
        copy = self.folder / "copy"
        await self.stop()
        await asyncio.to_thread(_copy, self.server.data, copy)
        await self.start()
        return copy

    async def set_back(self, copy: Path) -> None:
        """The files as they were."""
        await self.kill()
        await asyncio.to_thread(_copy, copy, self.server.data)
        await self.start()

    def spare(self, name: str) -> Postgres:
        """Another server with the same password, not made yet; on a port of its own."""
        folder = Folder(self.folder / name)
        folder.lock()
        (folder.path / "password").write_text(self.server.folder.password())
        spare = Postgres(folder, self.server.settings, self.server.program, folder.ports((name,))[name], print)
        if spare.account is not None:
            spare.account.own(spare.home)
        self.spares.append(spare)
        return spare

    def base_backup(self, name: str, *options: str) -> Postgres:
        """A spare with a copy of the running server's files by pg_basebackup, not started."""
        spare = self.spare(name)
        self.run("pg_basebackup", "-d", self.dsn, "-D", str(spare.data), "-X", "stream", "-c", "fast", *options)
        return spare

    async def replaced_by(self, spare: Postgres) -> None:
        """From now on the spare is the server."""
        await self.stop()
        await asyncio.to_thread(spare.stop)
        spare.port = self.server.port
        self.server = spare
        await self.start()


def prepared(servers: Endpoints, cluster: Cluster, folder: Path) -> Config:
    """A config over the cluster, with an empty table."""
    config = config_of(servers, cluster.dsn, folder)
    cluster.empty_table()
    return config


def _copy(old: Path, new: Path) -> None:
    """With owners and modes; `new` is removed before."""
    shutil.rmtree(new, ignore_errors=True)
    subprocess.run(["cp", "-a", str(old), str(new)], check=True)
