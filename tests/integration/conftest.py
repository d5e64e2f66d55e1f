"""Both plugins' decoders over a database of the test module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.decoding import Decoding, dropped


@pytest.fixture
def clean_database(database: str) -> str:
    """The module's database with an empty schema public."""
    with psycopg.connect(database, autocommit=True) as connection:
        dropped(connection)
    return database


@pytest.fixture
def make_decoding(clean_database: str) -> Iterator[Any]:
    """Builds a Decoding; closed afterwards."""
    made: list[Decoding] = []

    def build(**settings: Any) -> Decoding:
        made.append(Decoding(clean_database, **settings))
        return made[-1]

    yield build
    for decoding in made:
        decoding.close()
