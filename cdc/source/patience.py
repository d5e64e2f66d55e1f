"""A connection whose calls always end, also when the server or the network between falls silent.

libpq waits for ever. TCP notices lost packets (`[postgres] tcp_timeout_seconds`), but not a middlebox that goes on
acknowledging, nor a machine that hangs. A query may take long, so that time alone proves nothing: after
`silence_seconds` without a byte the server is asked, over a new connection, whether it still has this one's backend.
Only when it has not, or does not answer, the call fails with OperationalError and the connection is closed.

A call in a thread also ends, within a tenth of a second, when whoever waited for it was cancelled
(`cdc.source.beside`).
"""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar
from typing import Any, TypeVar

import psycopg
from psycopg import pq
from psycopg.abc import PQGen
from psycopg.generators import execute

from cdc.log import get

log = get(__name__)
abandoned: ContextVar[threading.Event | None] = ContextVar("abandoned", default=None)  # set: nobody waits any more
RV = TypeVar("RV")
_SERVED = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)"


class PatientConnection(psycopg.Connection[Any]):
    """Made by `cdc.source.connection.connect`. Without a `conninfo` to ask by, silence alone ends a call."""

    silence_seconds = 30.0
    conninfo = ""

    def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        """psycopg waits here for every answer, and looks around ten times a second."""
        return super().wait(self._watched(gen), *args, **kwargs)

    def command(self, text: bytes) -> pq.abc.PGresult:
        """A command of the replication protocol, which psycopg's cursors do not know; its result, errors included."""
        self.pgconn.send_query(text)
        results: list[pq.abc.PGresult] = self.wait(execute(self.pgconn))
        return results[-1]

    def served(self) -> bool:
        """Asks the server over a new connection whether it still has our backend. False when it does not answer."""
        if not self.conninfo:
            return False
        try:
            with PatientConnection.connect(self.conninfo, autocommit=True) as other:
                other.silence_seconds = self.silence_seconds
                row = other.execute(_SERVED, [self.pgconn.backend_pid]).fetchone()
        except psycopg.Error as error:
            log.warning("the server does not answer a new connection", reason=" ".join(str(error).split()))
            return False
        return bool(row and row[0])

    def _watched(self, gen: PQGen[RV]) -> PQGen[RV]:
        """Passes everything on, and ends the wait when there is no point in it."""
        heard = time.monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if ready or (time.monotonic() - heard > self.silence_seconds and self.served()):
                    heard = time.monotonic()
                elif time.monotonic() - heard > self.silence_seconds or left_alone():
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"timeout: no answer within {time.monotonic() - heard:.1f} s")
                wanted = gen.send(ready)
        except StopIteration as done:
            result: RV = done.value
            return result


def left_alone() -> bool:
    """True in a thread whose result nobody waits for any more."""
    left = abandoned.get()
    return left is not None and left.is_set()
