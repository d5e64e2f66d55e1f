"""A PostgreSQL of a module's own, for tests that kill it or exchange its files; a database with the table."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.crash.cluster import Cluster
from tests.pipeline import MEMORIES


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Running, with the usual settings."""
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        yield made
    finally:
        made.erase()


@pytest.fixture
def table_dsn(dsn: str) -> str:
    """The dsn of a fresh database with `memories`."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(MEMORIES)
    return dsn
