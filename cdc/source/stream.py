"""The replication stream over psycopg.pq: bytes of the plugin in, status updates out, nothing else.

Protocol: PostgreSQL manual, "Streaming Replication Protocol". psycopg has no replication API; COPY_BOTH is driven by
hand. Promises: messages come in the server's order; `send_status` may be called at any time, also while nobody reads;
a server that is gone without a word is noticed by whoever waits (the counterpart of wal_receiver_timeout). The caller's
duty: call `send_status` on a timer, and confirm only what is durable.
"""

from __future__ import annotations

import asyncio
import os
import re
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any

import psycopg
from psycopg import pq, sql

from cdc.config import Postgres
from cdc.errors import CdcError, ConnectError, PreconditionError
from cdc.log import get
from cdc.source.beside import beside
from cdc.source.connection import connect, connect_error, said_in
from cdc.source.patience import PatientConnection
from cdc.source.runs import COMPILED, compiled

log = get(__name__)

PG_EPOCH_US = 946_684_800_000_000  # 2000-01-01 in microseconds since 1970-01-01
_STATUS = struct.Struct("!cQQQQ?")  # 'r', written, flushed, applied, clock, reply wanted
_XLOG_DATA = ord("w")
_HEADER = 25  # 'w', start LSN, end LSN, clock: 1 + 3 × 8 bytes
# logical.c, output_plugin_error_callback
_CALLBACK = re.compile(r"output plugin .*, in the \w+ callback, associated LSN ([0-9A-F]+/[0-9A-F]+)")
_PASSING = ("08", "53", "57", "58")  # SQLSTATE classes: connection, resources, operator, the system around the server
_WAL_END = struct.Struct("!Q")


class SlotBusy(PreconditionError):
    """Another reader is connected to the slot."""


class PluginFailed(ConnectError):
    """The output plugin raised an error while it showed the change at `place` (an LSN as the server names it)."""

    def __init__(self, message: str, place: str) -> None:
        super().__init__(message, hint="it is tried again")
        self.place = place


class Stream:
    """One started replication stream. Not thread-safe; use from one event loop."""

    def __init__(self, connection: PatientConnection, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._pg = connection.pgconn
        self._loop = loop
        self._readable = asyncio.Event()
        # a number of our own: libpq closes its socket when the connection breaks, and the next one that is opened would
        # get that number while the loop still watches it
        self._fd = os.dup(self._pg.socket)
        self.received_lsn = 0
        self.drained_bytes = 0
        self._silent = 0.0  # seconds waited since the last message
        loop.add_reader(self._fd, self._readable.set)

    @classmethod
    def start(cls, config: Postgres, options: Mapping[str, str], loop: asyncio.AbstractEventLoop) -> Stream:
        """Acquires the slot and starts at its confirmed position. Raises SlotBusy, ConnectError, PreconditionError."""
        connection = connect(config, replication=True, name="memory-cdc reader")
        try:
            _begin(connection, config.slot, options)
        except CdcError:
            connection.close()
            raise
        return cls(connection, loop)

    def drain(self, limit: int) -> list[bytes]:
        """Payloads that are here already, up to about `limit` bytes. Raises ConnectError at its end."""
        payloads: list[bytes] = []
        size = newest = more = 0
        try:
            while size < limit:  # libpq takes in 16 kB at a time
                self._pg.consume_input()
                more, heard, answer = drain(self._pg.get_copy_data, limit - size, payloads)
                size, newest = size + more, max(newest, heard)
                if answer < 0:
                    self._ended()
                if not more:
                    break
        except psycopg.Error as error:
            raise connect_error(error) from error
        self.received_lsn = max(self.received_lsn, newest)
        self.drained_bytes = size
        if size:
            self._silent = 0.0
        return payloads

    async def wait(self, timeout: float) -> None:
        """Until the socket has something or `timeout` seconds passed. Raises ConnectError once the server is gone.

        Only time spent here counts as silence: while the caller is held up nobody hears what the server says.
        """
        self._readable.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._readable.wait()
        except TimeoutError:
            self._silent += timeout
        if self._silent > self._connection.silence_seconds and not self._readable.is_set():
            await self._ask()

    async def _ask(self) -> None:
        """A walsender may be silent for long while it decodes what is not selected; one that is gone stays silent."""
        if not await beside(self._connection.served):
            raise ConnectError(
                f"the replication stream is dead: nothing heard for {self._silent:.1f} s, "
                "and the server does not answer or knows nothing of it",
                hint="look at the network between; it is started again",
            )
        log.warning("the server is silent and still serves the stream", seconds=round(self._silent, 1))
        self._silent = 0.0

    def send_status(self, flushed_lsn: int) -> None:
        """Standby status update: everything before `flushed_lsn` may be forgotten by the server. After some silence it
        asks for a word in return."""
        clock = int(time.time() * 1e6) - PG_EPOCH_US
        received = max(self.received_lsn, flushed_lsn)
        wanted = self._silent > self._connection.silence_seconds / 2
        try:
            self._pg.put_copy_data(_STATUS.pack(b"r", received, flushed_lsn, flushed_lsn, clock, wanted))
            self._pg.flush()
        except psycopg.Error as error:
            raise connect_error(error) from error

    def close(self) -> None:
        """Ends the stream; the slot is free at once."""
        self._loop.remove_reader(self._fd)
        self._connection.close()
        os.close(self._fd)

    def _ended(self) -> None:
        """Raises why the COPY ended."""
        result = self._pg.get_result()
        text = said_in(result) if result is not None and result.error_message else ""
        if result is not None and (place := _place(result)):
            raise PluginFailed(f"the output plugin failed at {place}: {text}", place)
        raise ConnectError(f"the replication stream ended: {text or 'server closed it'}", hint="it is started again")


def _drain(get: Callable[[int], tuple[int, Any]], limit: int, payloads: list[bytes]) -> tuple[int, int, int]:
    """XLogData payloads that are here already → (bytes, newest LSN heard of, the last answer of `get`)."""
    size = newest = 0
    while size < limit:
        count, data = get(1)
        if count <= 0:
            return size, newest, count
        if data[0] == _XLOG_DATA:
            payloads.append(bytes(data[_HEADER:]))
        newest = max(newest, _WAL_END.unpack_from(data, 9 if data[0] == _XLOG_DATA else 1)[0])
        size += count
    return size, newest, 1


drain = compiled.drain if COMPILED else _drain


def _place(result: pq.abc.PGresult) -> str:
    """The LSN of the change the plugin failed at; '' for any other end, and where waiting helps."""
    state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
    context = (result.error_field(pq.DiagnosticField.CONTEXT) or b"").decode(errors="replace")
    found = _CALLBACK.search(context)
    return found[1] if found and not state.startswith(_PASSING) else ""


def identify(config: Postgres) -> tuple[str, int]:
    """`(system identifier, timeline)` of the source (IDENTIFY_SYSTEM). Raises ConnectError."""
    with connect(config, replication=True) as connection:
        try:
            result = connection.command(b"IDENTIFY_SYSTEM")
        except psycopg.Error as error:
            raise connect_error(error) from error
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise ConnectError(
                f"IDENTIFY_SYSTEM failed: {said_in(result)}", hint="give the role the REPLICATION attribute"
            )
        return (result.get_value(0, 0) or b"").decode(), int(result.get_value(0, 1) or 0)


def _begin(connection: PatientConnection, slot: str, options: Mapping[str, str]) -> None:
    pairs = [sql.SQL("{} {}").format(sql.Identifier(key), sql.Literal(value)) for key, value in options.items()]
    # 0/0: from the slot's own confirmed position; what is at or below our progress is skipped by the reader.
    command = sql.SQL("START_REPLICATION SLOT {} LOGICAL 0/0 ({})").format(
        sql.Identifier(slot), sql.SQL(", ").join(pairs)
    )
    try:
        result = connection.command(command.as_bytes(connection))
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise _refused(said_in(result), slot)
        connection.pgconn.nonblocking = 1
    except psycopg.Error as error:
        raise connect_error(error) from error


def _refused(text: str, slot: str) -> CdcError:
    if "is active for PID" in text:
        return SlotBusy(f"slot {slot} is in use by another reader", hint="this one waits until that one stops")
    if "output_plugin_libraries" in text or "could not access file" in text or "not allowed" in text:
        return PreconditionError(
            f"PostgreSQL refuses the output plugin: {text}",
            hint="install it and add it: ALTER SYSTEM SET output_plugin_libraries = pgoutput, test_decoding, wal2json; "
            "SELECT pg_reload_conf(); or set [postgres] plugin = 'pgoutput'",
        )
    if "invalidat" in text or "can no longer get changes" in text:
        return PreconditionError(f"slot {slot} is lost: {text}", hint="run `cdc resync`")
    return PreconditionError(f"START_REPLICATION was refused: {text}", hint="run `cdc doctor`")
