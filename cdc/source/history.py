"""Whether the source's history still is the one that Kafka holds.

A server restored from a copy of its files has the same system identifier and timeline as before, and a slot that stands
below progress, as after any crash. Its WAL positions are written anew, with other content: whoever only skips what is
at or below progress would take the new changes for old ones. Three things tell it apart, the first two at the start:
- another database under the same name has another oid;
- a server whose WAL ends below progress has lost what Kafka holds;
- a slot at or below progress's last commit shows that commit again, with the same transaction id and the same time to
  the microsecond (`Proof`). Until it does nothing beyond it is written and the slot is not told to move: else the next
  start would find slot and progress in agreement.
A slot that stands exactly behind progress's last commit was told so by us, in the history we know.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from psycopg import Connection

from cdc.errors import GapError, PreconditionError
from cdc.kafka.progress import Progress
from cdc.position import format_lsn
from cdc.source.events import Begin

RESYNC = "run `cdc resync`: it makes a new epoch, reads every table again and removes what no longer exists"
_HISTORY = """
SELECT (SELECT oid::bigint FROM pg_database WHERE datname = current_database()),
       (pg_current_wal_insert_lsn() - '0/0')::bigint
"""


class History(NamedTuple):
    """The database's oid, and where the server writes next."""

    database_oid: int
    insert_lsn: int


def refuse_standby(connection: Connection) -> None:
    """Raises PreconditionError when the server is in recovery: nobody can write there, so there are no heartbeats."""
    row = connection.execute("SELECT pg_is_in_recovery()").fetchone()
    if row and row[0]:
        raise PreconditionError(
            "the source is a standby that was not promoted",
            hint="name the primary in [postgres] dsn, or promote this one, and start again",
        )


def read_history(connection: Connection) -> History:
    """Of the connected database; the server is no standby."""
    row = connection.execute(_HISTORY).fetchone()
    assert row is not None
    return History(*row)


def check_history(history: History, progress: Progress | None) -> None:
    """Raises GapError for another database and for a server that is behind progress."""
    if progress is None:
        return
    if progress.database_oid not in (0, history.database_oid):
        raise GapError(
            f"the database was replaced by another of the same name (oid {history.database_oid}, progress is of "
            f"{progress.database_oid}): its changes since {since(progress)} are unknown",
            hint=RESYNC,
        )
    if history.insert_lsn < progress.end_lsn:
        raise GapError(
            f"the server was set back: its WAL ends at {format_lsn(history.insert_lsn)}, Kafka holds it up to "
            f"{since(progress)}; it no longer has what was between, and may write other changes there",
            hint=RESYNC,
        )


def since(progress: Progress) -> str:
    """Up to where Kafka holds everything, for a person: the LSN, and when its last change was committed."""
    lsn = format_lsn(progress.end_lsn)
    if not progress.commit_us:
        return lsn
    committed = datetime.fromtimestamp(progress.commit_us / 1e6, UTC)
    return f"{lsn} (committed {committed:%Y-%m-%d %H:%M:%S}.{committed.microsecond // 1000:03d} UTC)"


class Proof:
    """That the stream is the history of progress: it has to show progress's last commit again before all others.

    `confirmed_lsn`: where the slot stands. A commit record that begins there or later is sent (snapbuild.c,
    SnapBuildXactNeedsSkip). Progress of a version before this one tells no transaction, and nothing is asked of it.
    """

    def __init__(self, progress: Progress, confirmed_lsn: int) -> None:
        self._progress = progress
        self.given = not (progress.commit_lsn >= confirmed_lsn and progress.xid)

    def begin(self, begin: Begin) -> None:
        """A transaction of the stream. Raises GapError when it should have been another one."""
        last = self._progress
        if self.given or begin.commit_lsn < last.commit_lsn:
            return
        if (begin.commit_lsn, begin.xid, begin.commit_us) != (last.commit_lsn, last.xid, last.commit_us):
            raise GapError(
                f"the server's history was written anew: the commit at {format_lsn(last.commit_lsn)}, with which "
                f"progress ends, is not there any more, another one is at {format_lsn(begin.commit_lsn)}; changes "
                f"from before {since(last)} on are not what Kafka holds",
                hint=RESYNC,
            )
        self.given = True
