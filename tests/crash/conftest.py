"""A PostgreSQL of a module's own, for tests that kill it or exchange its files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.cluster import Cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Running, with the usual settings."""
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        yield made
    finally:
        made.erase()
