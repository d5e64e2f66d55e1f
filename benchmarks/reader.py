"""The bound of every reader: `pg_recvlogical -f /dev/null`, same plugin and options, from a copy of the slot."""

from __future__ import annotations

import os
import time
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from benchmarks.bench import wait_for_slot
from benchmarks.children import Child
from cdc.config import Config
from cdc.embedded import programs
from cdc.session import decoder_for
from cdc.source.catalog import Catalog

POLL_SECONDS = 0.005


def copy_slot(connection: psycopg.Connection, slot: str, number: int) -> str:
    """A slot at the same position."""
    name = f"{slot}_{number}"
    connection.execute("SELECT pg_copy_logical_replication_slot(%s, %s)", [slot, name])
    return name


def decoder_options(config: Config, connection: psycopg.Connection) -> dict[str, str]:
    """What the reader asks the plugin for."""
    return dict(decoder_for(config, Catalog(connection, config)).options())


def bound(connection: psycopg.Connection, dsn: str, slot: str, options: dict[str, str], end: str, rows: int) -> float:
    """Rows a second of pg_recvlogical from the slot to the end of the log."""
    parts: dict[str, Any] = conninfo_to_dict(dsn)
    password = str(parts.pop("password", ""))
    program = programs.postgres("auto").bin / "pg_recvlogical"
    command = [str(program), "--dbname", make_conninfo(**parts), "--slot", slot, "--start", "--no-loop"]
    command += ["--endpos", end, "--file", os.devnull]
    for name, value in options.items():
        command += ["--option", f"{name}={value}"]
    with Child(command, {"PGPASSWORD": password}) as child:
        started = wait_for_slot(connection, slot, child)
        while not child.ended():
            time.sleep(POLL_SECONDS)
        return rows / (time.monotonic() - started)
