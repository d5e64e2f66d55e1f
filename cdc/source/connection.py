"""Connections to the source, with every refusal turned into one sentence and its remedy."""

from __future__ import annotations

import psycopg
from psycopg import Connection

from cdc.config import Postgres
from cdc.errors import ConnectError, LoginError

# What the text form of values depends on, pinned so that both plugins and snapshots agree (docs/types.md).
PINNED = (
    "-c DateStyle=ISO,YMD -c IntervalStyle=iso_8601 -c TimeZone=UTC "
    "-c extra_float_digits=1 -c bytea_output=hex -c client_encoding=UTF8"
)

_LOGIN = ("password authentication failed", "no password supplied", "no pg_hba.conf entry")
_HINTS = (
    ("password authentication failed", "check [postgres] user and password (or PASSWORD_FILE)"),
    ("no pg_hba.conf entry", "allow this host, user and database in pg_hba.conf and reload"),
    ("does not exist", "check the database and role names in [postgres] dsn"),
    ("connection refused", "start PostgreSQL or correct host and port in [postgres] dsn"),
    ("timeout", "check host, port and firewall in [postgres] dsn"),
    ("too many", "raise max_connections or max_wal_senders on the server"),
)


def connect(config: Postgres, *, replication: bool = False, name: str = "memory-cdc") -> Connection:
    """An autocommit connection with pinned settings; `replication` for the streaming protocol. Raises ConnectError."""
    extra = {"replication": "database"} if replication else {}
    try:
        conninfo = config.conninfo(application_name=name, options=PINNED, **extra)
        return psycopg.connect(conninfo, autocommit=True)
    except psycopg.Error as error:
        raise connect_error(error) from error


def connect_error(error: psycopg.Error) -> ConnectError:
    """The sentence and remedy for what the server or libpq said."""
    text = " ".join(str(error).split()) or type(error).__name__
    hint = next((hint for sign, hint in _HINTS if sign in text.lower()), "check that PostgreSQL runs and is reachable")
    refused = any(sign in text.lower() for sign in _LOGIN)
    return (LoginError if refused else ConnectError)(f"PostgreSQL: {text}", hint=hint)
