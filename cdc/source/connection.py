"""Connections to the source, with every refusal turned into one sentence and its remedy.

PostgreSQL's own words may quote a row's values: always in DETAIL, CONTEXT and the query's LINE, and for some classes of
errors in the message too. `said` is what may be shown of them, and the only way they leave this half.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import Connection, pq
from psycopg.errors import error_from_result

from cdc.config import Postgres
from cdc.errors import ConnectError, LoginError
from cdc.source.patience import PatientConnection

# What the text form of values depends on, pinned so that both plugins and snapshots agree (docs/types.md).
PINNED = (
    "-c DateStyle=ISO,YMD -c IntervalStyle=iso_8601 -c TimeZone=UTC "
    "-c extra_float_digits=1 -c bytea_output=hex -c client_encoding=UTF8 "
    "-c row_security=off"  # a policy that would hide rows is an error, not a smaller table
)

# SQLSTATE classes whose message names objects, settings and connections, never values (manual, "PostgreSQL Error
# Codes"): not 22 (data), 23 (constraints), P0 (raised by functions).
_TELLING = frozenset(("08", "0A", "25", "26", "28", "34", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "XX"))
_LOGIN = (
    "password authentication failed", "no password supplied", "no pg_hba.conf entry", "is not permitted to log in",
    "certificate verify failed", "does not match host name", "root certificate file", "server does not support ssl",
    "requires a valid client certificate", "certificate required",
)  # fmt: skip
_HINTS = (
    ("password authentication failed", "check [postgres] user and password (or PASSWORD_FILE)"),
    ("no password supplied", "set [postgres] password (or PASSWORD_FILE)"),
    ("is not permitted to log in", "ALTER ROLE … LOGIN, and give it a password"),
    ("no pg_hba.conf entry", "allow this host, user and database in pg_hba.conf and reload"),
    ("certificate verify failed", "name the authority of the server's certificate by sslrootcert in [postgres] dsn"),
    ("does not match host name", "write the name the server's certificate holds as host in [postgres] dsn"),
    ("root certificate file", "name the authority's certificate by sslrootcert in [postgres] dsn"),
    ("server does not support ssl", "set ssl = on with a certificate on the server, or choose another sslmode"),
    ("valid client certificate", "name a certificate by sslcert and sslkey in [postgres] dsn"),
    ("certificate required", "name a certificate by sslcert and sslkey in [postgres] dsn"),
    ("walsender", "ALTER ROLE … REPLICATION"),
    ("permission denied", "GRANT SELECT on the table to this role; `cdc doctor` prints the statement"),
    ("row-level security", "ALTER ROLE … BYPASSRLS: a reader has to see every row"),
    ("does not exist", "check the database and role names in [postgres] dsn"),
    ("connection refused", "start PostgreSQL or correct host and port in [postgres] dsn"),
    ("timeout", "check host, port and firewall in [postgres] dsn"),
    ("too many", "raise max_connections or max_wal_senders on the server"),
)


def connect(config: Postgres, *, replication: bool = False, name: str = "memory-cdc") -> PatientConnection:
    """An autocommit connection with pinned settings; `replication` for the streaming protocol. None of its calls waits
    for a silent server for ever. Raises ConnectError."""
    extra = {"replication": "database"} if replication else {}
    try:
        conninfo = config.conninfo(application_name=name, options=PINNED, **extra)
        made = PatientConnection.connect(conninfo, autocommit=True)
    except psycopg.Error as error:
        raise connect_error(error) from error
    made.silence_seconds, made.conninfo = config.silence_seconds, config.conninfo(application_name=f"{name} asks")
    return made


def raw(connection: Connection) -> psycopg.RawCursor[Any]:
    """For parameters beside names that are not ours: $1, since a % in a name would count as a parameter."""
    return psycopg.RawCursor(connection)


def connect_error(error: psycopg.Error) -> ConnectError:
    """The sentence and remedy for what the server or libpq said."""
    text = said(error)
    hint = next((hint for sign, hint in _HINTS if sign in text.lower()), "check that PostgreSQL runs and is reachable")
    refused = any(sign in text.lower() for sign in _LOGIN)
    return (LoginError if refused else ConnectError)(f"PostgreSQL: {text}", hint=hint)


def said(error: psycopg.Error) -> str:
    """What the server or libpq said, in one line and without any value of a row."""
    state = error.sqlstate
    if state is None:  # libpq's own words, which know no rows
        return " ".join(str(error).split()) or type(error).__name__
    primary = error.diag.message_primary
    return " ".join(primary.split()) if primary and state[:2] in _TELLING else f"{type(error).__name__} ({state})"


def said_in(result: pq.abc.PGresult) -> str:
    """The same of a failed result."""
    return said(error_from_result(result))
