"""PostgreSQL as a child process, ready for logical decoding; passwords for TCP and socket alike, durable as ever."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import psycopg
from psycopg import sql

from cdc.embedded import account as accounts
from cdc.embedded.folder import HOST, Folder
from cdc.embedded.programs import Postgres as PostgresProgram
from cdc.embedded.server import Server
from cdc.errors import PreconditionError

USER = "postgres"
DATABASE = "memories"
SOCKET_PATH_BYTES = 107  # of sun_path, without its end (unix(7))
PROBE_TIMEOUT_SECONDS = 5
OURS = "memory-cdc.conf"


class Postgres(Server):
    """`settings` are those of postgresql.conf; ALTER SYSTEM wins over them."""

    name = "postgres"
    title = "PostgreSQL"
    # Fast shutdown waits for walsenders, whose clients may never confirm; then immediate, and recovery at next start.
    stop_signals = ((signal.SIGINT, 15.0), (signal.SIGQUIT, 10.0))
    death_signal = signal.SIGQUIT  # nobody is there to follow up: the one that waits for nobody

    def __init__(
        self,
        folder: Folder,
        settings: Mapping[str, str],
        program: PostgresProgram,
        port: int,
        report: Callable[[str], None],
    ) -> None:
        super().__init__(folder, settings)
        self.program = program
        self.port = port
        self.account = accounts.for_postgres()
        self.home = self._home(report)
        self.data = self.home / "cluster"

    @property
    def provider(self) -> str:
        return str(self.program)

    @property
    def dsn(self) -> str:
        """For libpq, of the superuser, with the password: do not log it."""
        return f"postgresql://{USER}:{self.folder.password()}@{HOST}:{self.port}/{DATABASE}"

    def prepare(self) -> None:
        """initdb once; our settings at each start."""
        if self.account is None:
            self.home.mkdir(mode=0o700, exist_ok=True)
        else:
            self.account.own(self.home)
        version = self.data / "PG_VERSION"
        if not version.exists():
            self._initialize()
        elif version.read_text().strip() != str(self.program.major):
            raise PreconditionError(
                f"{self.data} was made by PostgreSQL {version.read_text().strip()}, not {self.program.major}",
                hint="install that version, or name another folder",
            )
        self._write(self.data / OURS, "".join(f"{name} = {_quoted(value)}\n" for name, value in self._settings()))

    def command(self) -> list[str]:
        """The postmaster."""
        return [str(self.program.bin / "postgres"), "-D", str(self.data)]

    def answers(self) -> bool:
        """A SELECT; our database is made at the first answer."""
        timeout = PROBE_TIMEOUT_SECONDS
        try:
            with psycopg.connect(self.dsn, dbname="postgres", autocommit=True, connect_timeout=timeout) as connection:
                exists = connection.execute("SELECT true FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
                if not exists:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
                return True
        except psycopg.OperationalError:
            return False

    def _initialize(self) -> None:
        """Into a draft folder, so that a half-made cluster is never taken for one."""
        draft, password = self.home / "draft", self.home / "password"
        if draft.exists():
            shutil.rmtree(draft)
        self._write(password, self.folder.password())
        options = ["--username", USER, "--pwfile", str(password), "--auth", "scram-sha-256"]
        options += ["--encoding", "UTF8", "--locale", "C.UTF-8", "--no-instructions"]
        self.run([str(self.program.bin / "initdb"), "--pgdata", str(draft), *options])
        password.unlink()
        with (draft / "postgresql.conf").open("a") as file:
            file.write(f"\ninclude '{OURS}'\n")
        draft.rename(self.data)

    def _settings(self) -> list[tuple[str, str]]:
        reachable = len(os.fsencode(self.home / f".s.PGSQL.{self.port}")) <= SOCKET_PATH_BYTES
        settings = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": str(self.home) if reachable else "",
            "password_encryption": "scram-sha-256",
            "wal_level": "logical",
            "max_replication_slots": "20",
            "max_wal_senders": "20",
            "max_slot_wal_keep_size": "8GB",  # a forgotten slot must not fill the disk
            "cluster_name": "memory-cdc",
            "log_line_prefix": "%m [%p] %a ",
        }
        if self.program.lists_plugins and self.program.wal2json:
            settings["output_plugin_libraries"] = "pgoutput, test_decoding, wal2json"
        return list({**settings, **self.settings}.items())

    def _write(self, path: Path, text: str) -> None:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        if self.account is not None:
            os.chown(path, self.account.uid, self.account.gid)

    def _home(self, report: Callable[[str], None]) -> Path:
        """`postgres` in the data folder, or a link there to where the account can reach it."""
        wanted = self.folder.path / "postgres"
        if wanted.is_symlink():
            return wanted.readlink()
        if self.account is None or self.account.reaches(wanted):
            return wanted
        home = accounts.shared_folder(wanted)
        wanted.symlink_to(home)
        report(f"PostgreSQL runs as {self.account.name}, who cannot reach {self.folder.path}: its data is in {home}")
        return home


def erase(folder: Folder) -> None:
    """Removes a cluster that `Postgres` had to put elsewhere; the server has to be stopped."""
    link = folder.path / "postgres"
    if link.is_symlink() and link.readlink() == accounts.shared_folder(link) and link.exists():
        shutil.rmtree(link.readlink())


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
