"""Opening a reader's session, on real servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from cdc import session
from cdc.config import Config
from cdc.embedded import Endpoints
from tests.pipeline import MEMORIES, config_of, source
from tests.waiting import until

SENDER_SECONDS = 1  # wal_sender_timeout
PATIENCE = 3  # times that


async def test_a_slow_kafka_does_not_cost_the_stream(
    servers: Endpoints, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take longer than wal_sender_timeout until a session is open: the server hears of us meanwhile."""
    config = config_of(servers, dsn, tmp_path, postgres={"status_seconds": 0.2})
    opened = session.open_oversized
    with source(config) as connection:
        connection.execute(MEMORIES)
        name = sql.Identifier(connection.info.dbname)
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET wal_sender_timeout = '{}s'").format(name, sql.Literal(SENDER_SECONDS))
        )

        async def slow(given: Config) -> Any:
            """As long as it takes until a server that hears nothing would have given us up."""
            await until(lambda: served(connection, config) > PATIENCE * SENDER_SECONDS, "a stream as old as that")
            return await opened(given)

        monkeypatch.setattr(session, "open_oversized", slow)
        running = await session.open_session(config)
        try:
            assert served(connection, config) > PATIENCE * SENDER_SECONDS
        finally:
            await running.close()


def served(connection: psycopg.Connection, config: Config) -> float:
    """Seconds since the walsender of our slot was started; fails when there is none."""
    row = connection.execute(
        "SELECT extract(epoch FROM clock_timestamp() - backend_start)::float8 FROM pg_stat_replication r"
        " JOIN pg_replication_slots s ON s.active_pid = r.pid WHERE slot_name = %s",
        [config.postgres.slot],
    ).fetchone()
    assert row is not None, "the server gave the stream up"
    return float(row[0])
