"""One step in the control schema, on a connection of its own, with every refusal as one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import psycopg
from psycopg import Connection

from cdc.config import Config
from cdc.errors import StoreError
from cdc.source.connection import connect, connect_error

NAME = "memory-cdc gateway control"
T = TypeVar("T")


def keep(config: Config, step: Callable[[Connection[Any]], T]) -> T:
    """What the step returns; it blocks. Raises ConnectError, StoreError without the schema, and the step's errors."""
    with connect(config.postgres, name=NAME) as connection:
        try:
            return step(connection)
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedFunction, psycopg.errors.InvalidSchemaName) as e:
            raise StoreError("the control schema is not there, or is older", hint="apply sql/: `cdc init`") from e
        except psycopg.Error as error:
            raise connect_error(error) from error
