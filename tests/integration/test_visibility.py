"""The stream delivers a transaction that no SELECT sees yet: values that are selected wait for it.

A commit that waits for a synchronous standby holds that moment open for as long as a test needs.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cdc.config import Config
from cdc.embedded import Endpoints
from cdc.source.visibility import Shot, parse_shot
from tests.comparison import by_id, rows_of, table_dump, topic_rows
from tests.conftest import fresh_database
from tests.pipeline import MEMORIES, config_of, reading, source, written
from tests.waiting import until

WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND query LIKE '%%pg_current_snapshot%%'"
)


@contextmanager
def standby_that_never_answers(config: Config) -> Iterator[None]:
    """Who commits with synchronous_commit = on waits; this database's sessions do not, unless they say so."""
    with source(config) as connection:
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        connection.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
            connection.execute("SELECT pg_reload_conf()")


def commit(config: Config, statement: str) -> None:
    """Returns once the standby answers, or nobody asks for one any more."""
    with source(config) as connection:
        connection.execute("SET synchronous_commit = on")
        connection.execute(statement)


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO memories (id, score) VALUES (2, 'NaN')",  # no row is seen yet
        "UPDATE memories SET score = 'NaN', who = 'new' WHERE id = 1",  # the old row is
        "UPDATE memories SET id = 3 WHERE id = 1",  # under its new key it is not, and its text travels not at all
    ],
)
async def test_what_is_selected_is_never_older_than_the_stream(servers: Endpoints, tmp_path: Path, change: str) -> None:
    with fresh_database(servers.postgres_dsn) as dsn:
        config = config_of(servers, dsn, tmp_path)
        with source(config) as connection:
            connection.execute(MEMORIES)
            connection.execute(f"ALTER DATABASE {connection.info.dbname} SET synchronous_commit = 'local'")
            connection.execute("INSERT INTO memories (id, score, content) VALUES (1, 1, repeat('old', 2000))")
        async with reading(config) as running:
            await written(config, running)
            with standby_that_never_answers(config), source(config) as connection:
                session = threading.Thread(target=commit, args=(config, change))
                session.start()

                def reader_waits() -> bool:
                    return connection.execute(WAITING).fetchone() != (0,)

                try:
                    await until(reader_waits, "a reader that waits until the change is visible")
                finally:
                    connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
                    connection.execute("SELECT pg_reload_conf()")
                    await asyncio.to_thread(session.join)
            await written(config, running)
            assert by_id(topic_rows(await table_dump(config))) == by_id(await asyncio.to_thread(rows_of, config))


def test_a_snapshot_does_not_see_what_is_listed_or_at_xmax() -> None:
    shot = parse_shot("100:105:100,103")
    assert shot == Shot(105, frozenset({100, 103}))
    assert [xid for xid in range(98, 108) if shot.misses(xid)] == [100, 103, 105, 106, 107]
    wrapped = parse_shot(f"{(1 << 32) - 2}:{(1 << 32) + 3}:{(1 << 32) + 1}")
    assert [xid for xid in (0xFFFF_FFFE, 0xFFFF_FFFF, 0, 1, 2, 3, 4) if wrapped.misses(xid)] == [1, 3, 4]
