"""The reader from PostgreSQL to topics and stores: every change once, in order, whatever is killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cdc.embedded import Endpoints
from tests.conftest import fresh_database
from tests.pipeline import (
    MEMORIES,
    assert_equal_everywhere,
    assert_in_order,
    config_of,
    pipeline,
    source,
)


@pytest.fixture
def dsn(servers: Endpoints) -> Iterator[str]:
    """A database of each test's own, with the table `memories`."""
    with fresh_database(servers.postgres_dsn) as made:
        yield made


def put(first: int, last: int, content: str = "'text ' || n") -> str:
    """SQL that inserts rows."""
    return (
        "INSERT INTO memories SELECT n, 'user ' || n % 3, " + content + ", n / 7.0, n::numeric / 4, "
        "jsonb_build_object('n', n), array[n, 1, 2, 3, 4, 5, 6, 7]::real[] "
        f"FROM generate_series({first}, {last}) n"
    )


async def test_every_kind_of_change_reaches_all_stores(servers: Endpoints, dsn: str, tmp_path: Path) -> None:
    config = config_of(servers, dsn, tmp_path)
    with source(config) as connection:
        connection.execute(MEMORIES)
        connection.execute(put(1, 30))
        async with pipeline(config) as running:
            await running.caught_up()
            await assert_equal_everywhere(running)
            for statement in (
                put(31, 60, "repeat('long ', 1000)"),
                "UPDATE memories SET who = 'x' WHERE id > 20",
                "UPDATE memories SET id = id + 100 WHERE id IN (1, 40)",
                "UPDATE memories SET score = 'NaN', amount = 'NaN' WHERE id = 2",
                "UPDATE memories SET score = '-Infinity' WHERE id = 3",
                "UPDATE memories SET embedding = NULL, tags = NULL WHERE id = 4",
                "DELETE FROM memories WHERE id % 5 = 0",
            ):
                connection.execute(statement)
            await running.caught_up()
            assert_in_order(await assert_equal_everywhere(running))
            connection.execute("TRUNCATE memories")
            connection.execute(put(5, 9))
            await running.caught_up()
            assert_in_order(await assert_equal_everywhere(running))
