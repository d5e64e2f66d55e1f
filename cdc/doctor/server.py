"""PostgreSQL itself: version, settings, the role's rights, the output plugin."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import Connection, sql

from cdc.config import Config, Postgres
from cdc.doctor.finding import Finding, error, ok, warning
from cdc.errors import PreconditionError
from cdc.source.slot import create_slot, read_slot

AREA = "postgres"
OLDEST = 14  # protocol 2 of pgoutput, CREATE OR REPLACE TRIGGER
TESTED = 15
TRIAL_MS = 5000  # a slot waits for the transactions that are open; longer ones must not hold the doctor


def check(connection: Connection, config: Config) -> Iterator[Finding]:
    """Raises psycopg.Error."""
    yield from _version(connection)
    level = _setting(connection, "wal_level")
    if level == "logical":
        yield ok(AREA, "wal_level is logical")
    else:
        yield error(AREA, f"wal_level is {level}", "ALTER SYSTEM SET wal_level = logical; and restart PostgreSQL")
    yield from _encoding(connection, config.postgres)
    yield from _role(connection)
    yield from _room(connection, config.postgres)
    yield from _retention(connection)
    if level == "logical":
        yield _plugin(connection, config.postgres)


def _version(connection: Connection) -> Iterator[Finding]:
    major = connection.info.server_version // 10_000
    text = f"PostgreSQL {_setting(connection, 'server_version').split()[0]} answers"
    if major < OLDEST:
        yield error(AREA, f"{text}, {OLDEST} or newer is needed", f"upgrade PostgreSQL to {TESTED} or newer")
    elif major < TESTED:
        yield warning(AREA, f"{text}, which is not tested", f"upgrade PostgreSQL to {TESTED} or newer")
    else:
        yield ok(AREA, text)
    if _setting(connection, "transaction_read_only") == "on" or _value(connection, "SELECT pg_is_in_recovery()"):
        yield error(
            AREA, "this server is a standby or read-only", "point [postgres] dsn to the primary, where writes happen"
        )


def _encoding(connection: Connection, config: Postgres) -> Iterator[Finding]:
    encoding = _setting(connection, "server_encoding")
    if encoding == "UTF8":
        yield ok(AREA, "the database is encoded in UTF8")
    elif config.plugin == "wal2json":
        yield error(
            AREA,
            f"the database is encoded in {encoding}, and wal2json writes that into its JSON",
            "set [postgres] plugin = 'pgoutput', or move the data to a database with ENCODING 'UTF8'",
        )
    else:
        yield warning(AREA, f"the database is encoded in {encoding}", "prefer a database with ENCODING 'UTF8'")


def _role(connection: Connection) -> Iterator[Finding]:
    name, replicates = connection.execute(
        "SELECT rolname, rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user"
    ).fetchone() or ("?", False)
    if replicates:
        yield ok(AREA, f"role {name} may replicate")
    else:
        role = sql.Identifier(name).as_string(connection)
        yield error(AREA, f"role {name} may not replicate", f"ALTER ROLE {role} REPLICATION")


def _room(connection: Connection, config: Postgres) -> Iterator[Finding]:
    """A slot and a sender for the reader, unless it has them already."""
    slot = read_slot(connection, config.slot)
    slots = int(_setting(connection, "max_replication_slots"))
    used = int(_value(connection, "SELECT count(*) FROM pg_replication_slots"))
    if slot is None and used >= slots:
        yield error(
            AREA,
            f"all {slots} replication slots are taken",
            "raise max_replication_slots and restart PostgreSQL, or drop a slot nobody uses",
        )
    else:
        yield ok(AREA, f"{used} of {slots} replication slots are taken")
    senders = int(_setting(connection, "max_wal_senders"))
    busy = int(_value(connection, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'"))
    if (slot is None or not slot.active) and busy >= senders:
        yield error(AREA, f"all {senders} WAL senders are busy", "raise max_wal_senders and restart PostgreSQL")
    else:
        yield ok(AREA, f"{busy} of {senders} WAL senders are busy")


def _retention(connection: Connection) -> Iterator[Finding]:
    kept = _setting(connection, "max_slot_wal_keep_size")
    if kept == "-1":
        yield warning(
            AREA,
            "max_slot_wal_keep_size is unlimited: while the reader is away, WAL grows until the disk is full",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '…GB' (docs/operations.md: sizing); SELECT pg_reload_conf()",
        )
    else:
        yield ok(AREA, f"slots keep at most {kept} of WAL")


def _plugin(connection: Connection, config: Postgres) -> Finding:
    """The only proof is a slot: the list of allowed plugins may be hidden from the role."""
    trial = config.model_copy(update={"slot": f"cdc_doctor_{os.getpid()}"})
    if (slot := read_slot(connection, config.slot)) is not None and slot.active and slot.plugin == config.plugin:
        return ok(AREA, f"the output plugin {config.plugin} is at work")
    try:
        connection.execute(f"SET statement_timeout = {TRIAL_MS}".encode())
        create_slot(connection, trial, temporary=True)
        connection.execute("SELECT pg_drop_replication_slot(%s)", [trial.slot])
    except PreconditionError as failed:
        if isinstance(failed.__cause__, psycopg.errors.QueryCanceled):
            return warning(
                AREA,
                f"whether {config.plugin} may be used could not be tried within {TRIAL_MS / 1000:g} s: a slot waits "
                "for the transactions that are open",
                "end them (pg_stat_activity, pg_prepared_xacts), or ask again later",
            )
        text = failed.message.replace(trial.slot, config.slot)
        return error(AREA, f"a slot with {config.plugin} cannot be made ({text})", failed.hint)
    finally:
        connection.execute("SET statement_timeout = 0")
    return ok(AREA, f"the output plugin {config.plugin} is there and allowed")


def _setting(connection: Connection, name: str) -> str:
    row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
    return str(row[0]) if row else ""


def _value(connection: Connection, query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    return row[0] if row else None
