"""Rows by `COPY … TO STDOUT` over psycopg.pq, without an object a row; for a thread beside the event loop.

The server has neither casts nor a portal to go through, and here a row is no result with cells to be asked for.
psycopg's own `copy()` hands over one row at a time, each through a generator.
"""

from __future__ import annotations

from typing import NamedTuple

import psycopg
from psycopg import pq
from psycopg.abc import PQGen
from psycopg.errors import error_from_result
from psycopg.generators import fetch_many
from psycopg.waiting import Wait

from cdc.kafka.block import Rows
from cdc.source.patience import PatientConnection
from cdc.source.runs import CopyReader

CANCEL_SECONDS = 10.0  # for the server to take a request to stop


class Copied(NamedTuple):
    """`whole`: False when the rest was not waited for. `last` is the last row's line."""

    rows: Rows
    last: bytes
    whole: bool


def copied(connection: PatientConnection, query: bytes, read: CopyReader, most: int) -> Copied:
    """All rows of the query, or the first ones once they are more than `most` bytes, within a transaction that is to be
    rolled back then. Raises psycopg.Error, DecodeError."""
    begun = connection.command(query)
    if begun.status != pq.ExecStatus.COPY_OUT:
        raise error_from_result(begun)
    pieces: list[bytes] = []
    count = largest = size = answer = 0
    last = b""
    while answer >= 0 and size <= most:
        connection.pgconn.consume_input()
        rows, longest, line, answer = read(connection.pgconn.get_copy_data, pieces)
        if rows:
            count, largest, last = count + rows, max(largest, longest), line
            size += len(pieces[-1])
        elif not answer:
            connection.wait(_readable())
    if answer >= 0:
        _stop(connection)
    else:
        _end(connection)
    return Copied(Rows(pieces, count, largest), last, answer < 0)


def _readable() -> PQGen[None]:
    """Until the server has sent something."""
    while not (yield Wait.R):
        pass


def _stop(connection: PatientConnection) -> None:
    """Has the server end the COPY; what was under way is thrown away."""
    connection.cancel_safe(timeout=CANCEL_SECONDS)
    answer = 0
    while answer >= 0:
        answer, _ = connection.pgconn.get_copy_data(1)
        if not answer:
            connection.wait(_readable())
            connection.pgconn.consume_input()
    try:
        _end(connection)
    except psycopg.errors.QueryCanceled:
        pass  # as we asked; else it had ended before


def _end(connection: PatientConnection) -> None:
    for result in connection.wait(fetch_many(connection.pgconn)):
        if result.status != pq.ExecStatus.COMMAND_OK:
            raise error_from_result(result)
