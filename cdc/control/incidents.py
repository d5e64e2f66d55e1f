"""Mirrors for people who speak SQL: dead letters in `cdc.letters`, conflicts in `cdc.conflicts`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from psycopg import Connection
from psycopg.types.json import Jsonb

from cdc.control.queries import run


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A dead letter. `id`, `store`, `reason`, `message`, `topic`, `partition`, `offset` are as in `consumers.letters`;
    `table` is schema.table or None, `key` the parsed key or None, `position` the wire form or None. Open while
    `closed_at` and `outcome` are None."""

    id: str
    store: str
    table: str | None
    key: Mapping[str, Any] | None
    reason: str
    message: str
    topic: str
    partition: int
    offset: int
    position: str | None
    refused_at: datetime
    closed_at: datetime | None = None
    outcome: Literal["redriven", "superseded", "discarded"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Concurrent versions of a row: the vectors `held` and `incoming`, which was `kept`, the `position` (wire form) of
    the record that came."""

    store: str
    table: str
    key: Mapping[str, Any]
    held: Mapping[str, int]
    incoming: Mapping[str, int]
    kept: Literal["held", "incoming", "merged"]
    position: str


def mirror_letters(connection: Connection[Any], letters: Iterable[Letter]) -> None:
    """Writes each as it is now, in one transaction; a letter seen before is overwritten. Raises psycopg.Error."""
    with connection.transaction():
        for letter in sorted(letters, key=lambda one: (one.store, one.id)):  # one order: no deadlock
            key = None if letter.key is None else Jsonb(dict(letter.key))
            run(connection, "mirror_letter", **{**asdict(letter), "key": key})


def take_in(connection: Connection[Any], store: str, log: str, entries: Iterable[tuple[int, Letter]], end: int) -> None:
    """Mirrors what a store's dead-letter topic says from the kept offset on, and keeps `end` as the next one: in one
    transaction, so that each entry counts once. `entries`: offset → a letter as it is from there on, in order; `log`:
    Kafka's id of the topic. A topic made anew closes what is open of the one before. Raises psycopg.Error."""
    with connection.transaction():
        run(connection, "begin_mirror", store=store, log=log)
        [(known, kept)] = run(connection, "lock_mirror", store=store)
        if known != log:
            run(connection, "close_lost_letters", store=store)
            kept = 0
        newest = {letter.id: letter for offset, letter in entries if offset >= kept}
        mirror_letters(connection, newest.values())
        run(connection, "move_mirror", store=store, log=log, next_offset=max(kept, end))


def record_conflicts(connection: Connection[Any], conflicts: Iterable[Conflict]) -> None:
    """Writes each once, however often it is said. Raises psycopg.Error."""
    with connection.transaction():
        for conflict in conflicts:
            vectors = {name: Jsonb(dict(getattr(conflict, name))) for name in ("key", "held", "incoming")}
            run(connection, "record_conflict", **{**asdict(conflict), **vectors})
