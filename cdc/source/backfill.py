"""Requests for a part of a table: how they travel, and what progress keeps of them.

A request is a transactional logical message. It holds an id, the table, and keys or the word that a condition of that
id stands in `cdc.conditions`: anybody may write messages, so that a condition, which runs with the reader's rights,
comes from a table that only some may write. Progress goes into every Kafka transaction, so that a request is small and
only so many are open at once; of those that have ended the newest stay for who waits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

import msgspec
from psycopg import Connection

from cdc.errors import MALFORMED, DecodeError
from cdc.kafka.progress import Backfill
from cdc.source.events import MESSAGE_PREFIX

KIND = "backfill"
REQUEST_KEYS = 1000  # of one request
REQUEST_BYTES = 64 << 10  # of one message
OPEN = 64  # requests that run or wait: 4 MiB of progress at the very most
ENDED = 64  # of the newest, some 100 bytes each; who waits looks twice a second
Keys = Sequence[Sequence[str]]


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The message. `rate` is rows a second."""

    kind: str
    id: UUID
    table: tuple[str, str]
    keys: list[list[str]] = []
    condition: bool = False
    rate: int | None = None


def ask(connection: Connection[Any], request: Request) -> int:
    """Writes the message; an LSN behind it. Raises psycopg.Error."""
    content = msgspec.json.encode(request).decode()
    connection.execute("SELECT pg_logical_emit_message(true, %s, %s)", (MESSAGE_PREFIX, content))
    row = connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::int8").fetchone()
    return int(row[0]) if row else 0


def pieces(keys: Keys) -> Iterator[list[list[str]]]:
    """Keys in as many requests as they need."""
    piece: list[list[str]] = []
    size = 0
    for key in map(list, keys):
        weight = len(json.dumps(key))  # not less than msgspec makes of it
        if piece and (len(piece) == REQUEST_KEYS or size + weight > REQUEST_BYTES // 2):
            yield piece
            piece, size = [], 0
        piece.append(key)
        size += weight
    if piece:
        yield piece


def read_request(content: Mapping[str, Any]) -> tuple[str, Backfill]:
    """Id and first state. Raises DecodeError for what is no request of ours."""
    try:
        request = msgspec.convert(content, Request)
        size = len(msgspec.json.encode(request))
    except (*MALFORMED, UnicodeEncodeError) as error:
        raise DecodeError("a request for a backfill is not understood", hint="use `cdc backfill`") from error
    if request.condition and request.keys:
        raise DecodeError("a request for a backfill has keys and a condition", hint="use `cdc backfill`")
    if size > REQUEST_BYTES or len(request.keys) > REQUEST_KEYS:
        raise DecodeError("a request for a backfill is too large", hint="use `cdc backfill`, which cuts it")
    rate = None if request.rate is None else max(1, request.rate)
    table = ".".join(request.table)
    return str(request.id), Backfill(table=table, keys=request.keys, condition=request.condition, rate=rate)


def noted(known: Mapping[str, Backfill], identity: str, state: Backfill) -> dict[str, Backfill]:
    """All that is to be kept. What has ended forgets its keys."""
    if state.ended:
        state = msgspec.structs.replace(state, keys=[], after=None)
    states = {name: other for name, other in known.items() if name != identity or not state.ended} | {identity: state}
    ended = [name for name, other in states.items() if other.ended]
    old = set(ended[:-ENDED])
    return {name: other for name, other in states.items() if name not in old}


def open_among(known: Mapping[str, Backfill]) -> dict[str, Backfill]:
    """Those that have not ended, the oldest first."""
    return {name: state for name, state in known.items() if not state.ended}


def kept(known: Mapping[str, Backfill], tables: Sequence[tuple[str, str]]) -> dict[str, Backfill]:
    """At a start: requests for tables that are not selected any more have failed."""
    names = set(map(".".join, tables))
    states = dict(known)
    for name, state in open_among(known).items():
        if state.table not in names:
            states = noted(states, name, msgspec.structs.replace(state, failed="the table does not travel any more"))
    return states
