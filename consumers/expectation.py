"""What a store has to hold according to the topics: each key's newest position, kept while they are replayed.

Costs some 250 bytes of memory a row, deleted ones included. Comparing a store with it needs no other store.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal, NamedTuple

from cdc.position import WIDTH
from consumers.store import Inspectable, Record, Version

LOOKUP = 1000  # keys asked of a store at once
DELETED = b"-"  # behind a position: the newest record is a tombstone; it sorts after the delete of the same position

Table = tuple[str, str]  # schema, table


class Difference(NamedTuple):
    """One key that is not as it should be; `held` and `expected` are positions, empty when there is none."""

    schema: str
    table: str
    key: bytes
    kind: Literal["missing", "extra", "stale"]
    held: bytes
    expected: bytes


class Expectation:
    """Feed it every record that a store is fed."""

    def __init__(self) -> None:
        self._tables: defaultdict[Table, dict[bytes, bytes]] = defaultdict(dict)
        self._refused: defaultdict[Table, set[bytes]] = defaultdict(set)
        self._newest = b""

    @property
    def tables(self) -> list[Table]:
        """Tables seen."""
        return sorted(self._tables)

    def add(self, table: Table, records: Iterable[Record]) -> None:
        """The newest position of each key wins, whatever the order."""
        rows = self._tables[table]
        held = rows.get
        newest = self._newest
        for record in records:
            key, position = record.key, record.position
            if position >= held(key, b""):
                rows[key] = position if record.value is not None else position + DELETED
                if position > newest:
                    newest = position
        self._newest = newest

    def refuse(self, table: Table, records: Iterable[Record]) -> None:
        """Records that went to the dead letters: their keys may be missing."""
        self._refused[table].update(record.key for record in records)

    def truncate(self, table: Table, below: bytes) -> None:
        """What a marker removes."""
        rows = self._tables[table]
        for key in [key for key, position in rows.items() if position[:WIDTH] < below]:
            del rows[key]

    def count(self, table: Table) -> int:
        """Live rows, those refused included."""
        return sum(len(position) == WIDTH for position in self._tables[table].values())

    async def differences(self, store: Inspectable, table: Table) -> AsyncIterator[Difference]:
        """What `store` holds otherwise. A position newer than expected is no difference: writing goes on meanwhile.

        A key that the store knows without showing it (deleted, or a row it has no use for) is in order when its
        version is. Raises what the store raises."""
        rows, refused, seen = self._tables[table], self._refused[table], set()
        async for key, position in store.scan(*table):
            seen.add(key)
            expected = rows.get(key, b"")
            if len(expected) == WIDTH and position < expected and key not in refused:
                yield Difference(*table, key, "stale", position, expected)
            elif len(expected) != WIDTH and position <= (expected or self._newest):
                yield Difference(*table, key, "extra", position, expected[:WIDTH])
        absent = (key for key, position in rows.items() if len(position) == WIDTH and key not in seen)
        for keys in _chunks(absent):
            async for difference in self._absent(store, table, keys):
                yield difference

    async def _absent(self, store: Inspectable, table: Table, keys: Collection[bytes]) -> AsyncIterator[Difference]:
        for key, version in zip(keys, await store.versions(*table, list(keys)), strict=True):
            expected = self._tables[table][key]
            if key not in self._refused[table] and (version is None or version.position < expected):
                held = version.position if version else b""
                yield Difference(*table, key, "stale" if version else "missing", held, expected)


async def confirmed(store: Inspectable, table: Table, found: Sequence[Difference]) -> list[Difference]:
    """The differences in a table that a second look still finds."""
    versions = await store.versions(*table, [difference.key for difference in found])
    return [d for d, version in zip(found, versions, strict=True) if not _mended(d, version)]


def _mended(difference: Difference, version: Version | None) -> bool:
    if difference.kind == "extra":
        return version is None or version.deleted
    return version is not None and version.position >= difference.expected


def _chunks(keys: Iterator[bytes]) -> Iterator[list[bytes]]:
    while chunk := list(islice(keys, LOOKUP)):
        yield chunk
