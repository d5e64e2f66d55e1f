"""What must hold after every trial and all the while: each a function that raises Violation with what differs.

They are pure, so that `test_invariants.py` can plant each violation and see it found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from tests.comparison import Record, follows

MEMORY_BYTES = 512 << 20  # the most any process of ours may ever have held (VmHWM)
GRACE_SECONDS = 60.0  # a catch-up may take twice the outage and this
SHOWN = 5  # differences named


class Violation(AssertionError):
    """A guarantee that did not hold."""


class Key(NamedTuple):
    """One row: table and the key's text."""

    table: str
    id: str


class Change(NamedTuple):
    """What a transaction did to a row: gave it this version, or deleted it (None)."""

    key: Key
    version: int | None


class Journaled(Protocol):
    """Changes since the last check: committed for sure, and perhaps."""

    acknowledged: Counter[Change]
    doubtful: Counter[Change]


def in_order(before: Record | None, record: Record) -> None:
    """Positions grow in each partition, so that nothing is there twice; a tombstone shares its delete's."""
    if not follows(before, record):
        raise Violation(f"{record} follows {before}")


def version_grows(key: Key, before: int, version: int, *, again: bool) -> None:
    """A row's changes come in the order of their commits; a snapshot may show the same version `again`."""
    if version < before or (version == before and not again):
        raise Violation(f"{key} shows version {version} after {before}")


def never_older(key: Key, before: bytes, position: bytes) -> None:
    """What a store shows of a row never becomes older; positions in their wire form."""
    if position < before:
        raise Violation(f"{key} went back from position {before.decode()} to {position.decode()}")


def complete(acknowledged: Counter[Change], doubtful: Counter[Change], seen: Counter[Change], *, gap: bool) -> None:
    """Acknowledged ⊆ seen ⊆ acknowledged or in doubt, each as often. `gap`: a new epoch began, which shows only what is
    left of the time before."""
    if missing := {} if gap else acknowledged - seen:
        raise Violation(f"{len(missing)} committed changes never came, as {_some(missing)}")
    if phantoms := seen - (acknowledged + doubtful):
        raise Violation(f"{len(phantoms)} changes came that nobody committed, or came twice, as {_some(phantoms)}")


def sessions_in_order(commits: Mapping[str, Mapping[int, Iterable[int]]]) -> None:
    """session → number of its transaction → commit positions its rows show: one each, and growing with the number."""
    for session, transactions in commits.items():
        last = -1
        for number in sorted(transactions):
            positions = set(transactions[number])
            if len(positions) != 1:
                raise Violation(f"transaction {session}:{number} shows the commit positions {sorted(positions)}")
            if min(positions) <= last:
                raise Violation(f"transaction {session}:{number} comes before one that committed earlier")
            last = min(positions)


def equal(what: str, expected: Mapping[Any, Any], held: Mapping[Any, Any]) -> None:
    """Per key what PostgreSQL holds and nothing else."""
    missing = expected.keys() - held.keys()
    extra = held.keys() - expected.keys()
    stale = {key for key in expected.keys() & held.keys() if expected[key] != held[key]}
    if missing or extra or stale:
        key = min(stale, key=str) if stale else None
        shown = f"; {key}: {held[key]} instead of {expected[key]}" if stale else ""
        raise Violation(
            f"{what} differs from PostgreSQL: {len(missing)} missing {_some(missing)},"
            f" {len(extra)} extra {_some(extra)}, {len(stale)} stale {_some(stale)}{shown}"
        )


def slot_behind(confirmed: int, end: int) -> None:
    """The slot was never told more than progress says: `confirmed` is older than `end`, both LSNs."""
    if confirmed > end:
        raise Violation(f"the slot is confirmed up to {confirmed}, progress says {end}")


def offsets_behind(group: Mapping[Any, int], durable: Mapping[Any, int]) -> None:
    """What the group committed, a store would survive with: partition → next offset."""
    for partition, offset in group.items():
        if offset > durable.get(partition, 0):
            raise Violation(f"{partition} is committed up to {offset}, durable up to {durable.get(partition, 0)}")


def caught_up_in_time(seconds: float, outage: float) -> None:
    """After an outage of so many seconds."""
    if seconds > catch_up_bound(outage):
        raise Violation(f"caught up {seconds:.1f} s after an outage of {outage:.1f} s")


def catch_up_bound(outage: float) -> float:
    """Seconds a catch-up may take."""
    return 2 * outage + GRACE_SECONDS


def memory_bounded(name: str, peak: int) -> None:
    """`peak` bytes were held at most."""
    if peak > MEMORY_BYTES:
        raise Violation(f"{name} held {peak >> 20} MiB, more than {MEMORY_BYTES >> 20}")


def rebuilt_equal(report: Mapping[str, Any], *, quiet: bool) -> None:
    """A rebuild (its JSON) was verified and swapped in; while nobody writes, it found the live store as the topics say,
    with as many rows. (While somebody writes, the live store may be late, or ahead.)"""
    rows_differ = any(table["rebuilt"] != table["replaced"] for table in report["rows"].values())
    live_differs = bool(report["differences_of_replaced"] or report["replaced_unreadable"] or rows_differ)
    if not report["swapped"] or (quiet and live_differs):
        raise Violation(f"the rebuild differs from the live store: {report}")


def _some(found: Iterable[Any]) -> str:
    return str(sorted(found, key=str)[:SHOWN])
