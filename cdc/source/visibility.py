"""Which transactions a SELECT sees. The stream may deliver one before any SELECT does.

A commit record is written, and decoded, before its transaction leaves the list of running ones; with synchronous
replication that takes as long as the standby's answer. So what is selected because of the stream has to be compared
with the snapshot it was selected in (manual, pg_snapshot): xids between xmin and xmax that were running are listed, and
none at or above xmax is seen, whether it runs or not.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import NamedTuple

import psycopg
from psycopg import Connection

from cdc.errors import ConnectError
from cdc.source.connection import connect_error
from cdc.source.patience import left_alone

_MASK = 0xFFFF_FFFF  # the stream shows xids in 32 bits; which of two is later is told modulo 2³² (manual, 25.1.5)
_HALF = 0x8000_0000
LOOK_SECONDS = 0.001  # a transaction leaves the list within microseconds, unless it waits for a standby
WAIT_SECONDS = 30.0


class Shot(NamedTuple):
    """A snapshot's view; xids cut to 32 bits. `running` are below `xmax`."""

    xmax: int
    running: frozenset[int]

    def misses(self, xid: int) -> bool:
        """True for a transaction, committed or not, whose rows are not seen."""
        return xid in self.running or self.beyond(xid)

    def beyond(self, xid: int) -> bool:
        """At or above xmax."""
        return (xid - self.xmax) & _MASK < _HALF


def parse_shot(text: str) -> Shot:
    """`xmin:xmax:xip`, as `pg_current_snapshot()` prints it."""
    _xmin, xmax, running = text.split(":")
    return Shot(int(xmax) & _MASK, frozenset(int(xid) & _MASK for xid in running.split(",") if xid))


def await_visible(connection: Connection, xids: Collection[int]) -> None:
    """Returns once a SELECT begun now sees these transactions, which the stream delivered as committed. Raises
    ConnectError."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            row = connection.execute("SELECT pg_current_snapshot()::text").fetchone()
        except psycopg.Error as error:
            raise connect_error(error) from error
        assert row is not None
        if not any(map(parse_shot(row[0]).misses, xids)):
            return
        if time.monotonic() > deadline or left_alone():
            raise ConnectError(
                f"a committed transaction is not visible after {WAIT_SECONDS:g} s",
                hint="does it wait for a synchronous standby? see pg_stat_activity, wait_event SyncRep",
            )
        time.sleep(LOOK_SECONDS)
