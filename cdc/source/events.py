"""What both decoders yield: the stream's messages as plain records, whatever plugin they came from.

A row is a list of JSON fragments (bytes, or any buffer), one for each column of its table, in the table's column
order, ready to be joined into the envelope; NULL is `b"null"`. Two fragments are no JSON but stand for what the
plugin did not send.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

Fragment = Any  # bytes, msgspec.Raw, or one of the two marks below; Any keeps the hot path free of casts
Codec = Callable[[bytes], bytes]  # PostgreSQL's text output of a non-null value → JSON fragment


class Mark:
    """A fragment that is to be filled in by the reader."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


UNCHANGED: Final = Mark("UNCHANGED")  # a TOAST column the update did not touch
UNKNOWN: Final = Mark("UNKNOWN")  # wal2json's null for a float or numeric: NULL, NaN or ±Infinity
NULL: Final = b"null"

MESSAGE_PREFIX: Final = "memory-cdc"  # of our pg_logical_emit_message calls; others are passed over


@dataclass(frozen=True, slots=True)
class Column:
    """One column that travels. `codec` includes the masking; `type_name` is format_type's text."""

    name: str
    type_oid: int
    type_name: str
    codec: Codec
    not_null: bool = False
    nonfinite: bool = False  # float4, float8, numeric: wal2json shows NaN and ±Infinity as null
    masked: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table as it stood when its rows were written; a new object after each DDL that changes it.

    `schema`, `name` are the partition root's. `columns` only those that are kept; `key` indexes into them.
    `full` tells REPLICA IDENTITY FULL. `templates` are built once for the hot path.
    """

    schema: str
    name: str
    columns: tuple[Column, ...]
    key: tuple[int, ...]
    full: bool
    row_template: bytes  # '"id":%b,"content":%b': one %b a column
    key_template: bytes  # '{"id":%b}': one %b a key column
    version_index: int | None = None  # the column that carries the version vector


class Begin(NamedTuple):
    """A source transaction starts. `commit_us` is microseconds since the Unix epoch."""

    xid: int
    commit_lsn: int
    commit_us: int


class Commit(NamedTuple):
    """It is complete. `end_lsn` is what the slot's feedback has to say to be past it."""

    commit_lsn: int
    end_lsn: int


class Row(NamedTuple):
    """`op` is c, u or d. `new` has a fragment a column (None for d), `old` what is known of the old row, in the same
    order, UNCHANGED where unknown (None for c, and for u when the key did not change and nothing is known)."""

    op: str
    table: Table
    new: list[Fragment] | None
    old: list[Fragment] | None


class Truncate(NamedTuple):
    """Tables emptied by TRUNCATE. One that names several is one event under pgoutput and one a table under wal2json,
    so each table counts an ordinal of its own."""

    tables: list[Table]


class Message(NamedTuple):
    """pg_logical_emit_message. `content` is what was emitted."""

    prefix: str
    content: bytes
    transactional: bool


Event = Begin | Commit | Row | Truncate | Message


class Run(Protocol):
    """Messages of one kind, which become records without being events: see runs.py."""

    @property
    def layout(self) -> Any:
        """With the `table` whose rows they are."""

    def take(self, payloads: list[bytes], start: int, target: Any) -> int:
        """Adds a record for each message from `start` on, up to the first of another kind: the index of that one."""


class Decoder(Protocol):
    """Turns one XLogData payload into an event; pure but for the catalog it asks about unknown tables."""

    def options(self) -> dict[str, str]:
        """The plugin options for START_REPLICATION."""

    def overtaken(self, lsn: int) -> bool:
        """Whether the catalog should be asked (`Catalog.advance`) before messages up to there are decoded; else the
        transaction that begins among them asks, and what shares its thread waits."""

    def run(self, payload: bytes) -> Run | None:
        """What may take this message and those that follow it."""

    def decode(self, payload: bytes) -> Event | None:
        """None for messages that carry nothing for us (e.g. pgoutput's Relation, Type, Origin; tables not selected).
        Raises DecodeError on malformed input."""
