"""Asking a running reader to send a part of a table again, and waiting until it is in Kafka.

What is asked for is looked at here first, over a connection of our own: a table, key or condition that PostgreSQL does
not take is refused at once, and the reader never sees it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from cdc.errors import PreconditionError

if TYPE_CHECKING:
    from psycopg import Connection, sql

    from cdc.config import Config
    from cdc.kafka.progress import Backfill, Progress
    from cdc.source.backfill import Request
    from cdc.source.events import Table

LOOK_SECONDS = 0.5  # between two looks at the progress topic
IN_FLIGHT = 4  # requests of one selection that the reader has at once
NAME = "memory-cdc backfill"
TIMES = ("date", "timestamp without time zone", "timestamp with time zone")
OnRows = Callable[[int, int | None], None]  # rows and deletes sent so far, about how many there will be


class Wanted(NamedTuple):
    """Keys as people write them, or a condition, or what is not older than `since` (an interval) by `column`, or all.
    `rate` in rows a second, None is the config's."""

    table: str
    keys: Sequence[str] = ()
    where: str | None = None
    since: str | None = None
    column: str | None = None
    rate: int | None = None


class Sent(NamedTuple):
    """Rows, and deletes for keys without one."""

    rows: int
    gone: int


@dataclass
class Plan:
    """What was found in order. `total`: about so many rows, None where nobody knows."""

    name: tuple[str, str]
    keys: Sequence[Sequence[str]] = ()
    condition: str | None = None
    total: int | None = None
    rate: int | None = None

    def requests(self) -> list[Request]:
        """As they travel: many keys in several."""
        from cdc.source.backfill import KIND, Request, pieces

        chosen = self.condition is not None
        return [
            Request(kind=KIND, id=uuid4(), table=self.name, keys=keys, condition=chosen, rate=self.rate)
            for keys in (pieces(self.keys) if self.keys else [[]])
        ]


def planned(config: Config, wanted: Wanted) -> Plan:
    """Raises PreconditionError, Refused, ConnectError."""
    from cdc.commands.verify import selected
    from cdc.source.catalog import Catalog
    from cdc.source.connection import connect
    from cdc.source.key_text import parse_key, topic_keys

    if wanted.keys and (wanted.where is not None or wanted.since is not None):
        raise PreconditionError("keys and a condition exclude each other", hint="give one of them")
    if any(map(_no_text, (*wanted.keys, wanted.where, wanted.since, wanted.column))):
        raise PreconditionError("what is asked for is no text of PostgreSQL", hint="leave out the character NUL")
    [name] = selected(config, wanted.table)
    rate = wanted.rate or config.postgres.backfill_rows_per_second
    with closing(connect(config.postgres, name=NAME)) as connection:
        catalog = Catalog(connection, config)
        table = catalog.table(*name)
        keys = [parse_key(key, table, catalog.type_of) for key in dict.fromkeys(wanted.keys)]
        if keys:
            topic_keys(connection, table, keys)
            return Plan(name, keys, None, len(keys), rate)
        return _conditioned(config, connection, table, wanted, rate)


def _no_text(text: str | None) -> bool:
    """NUL, or half of a pair of surrogates."""
    return text is not None and ("\0" in text or text.encode(errors="ignore").decode() != text)


def _conditioned(config: Config, connection: Connection[Any], table: Table, wanted: Wanted, rate: int | None) -> Plan:
    from psycopg import sql

    from cdc.source.condition import estimate

    name = (table.schema, table.name)
    parts = [] if wanted.where is None else [f"(\n{wanted.where}\n)"]
    source = sql.Identifier(*name)
    if wanted.where is not None:
        estimate(connection, source, wanted.where)  # by itself, before brackets make it whole
    if wanted.since is not None:
        column = wanted.column or config.table(*name).recency
        parts.append(_since(connection, table, column, wanted.since))
    if not parts:
        return Plan(name, rate=rate)
    condition = " AND ".join(parts)
    return Plan(name, (), condition, estimate(connection, source, condition), rate)


def _since(connection: Connection[Any], table: Table, column: str | None, since: str) -> str:
    """A condition with a moment in it, so that it means the same after a restart."""
    import psycopg
    from psycopg import sql

    from cdc.source.condition import Refused, explained

    label = f"{table.schema}.{table.name}"
    if column is None:
        raise Refused(f"{label} has no time to go by", hint="name a column, or set [tables] recency")
    kind = _type_of(connection, sql.Identifier(table.schema, table.name), column)
    if kind not in TIMES:
        raise Refused(f"{label} has no column {column} of a time's type", hint=f"name one of type {', '.join(TIMES)}")
    moment = sql.SQL("SELECT (clock_timestamp() - %s::interval)::{}::text").format(sql.SQL(kind))
    try:
        row = connection.execute(moment, (since,)).fetchone()
        assert row is not None
        condition = sql.SQL("{} >= {}::{}").format(sql.Identifier(column), sql.Literal(row[0]), sql.SQL(kind))
        return condition.as_string(connection)
    except psycopg.Error as error:
        raise explained(connection, error, "that duration") from error


def _type_of(connection: Connection[Any], source: sql.Composable, column: str) -> str | None:
    row = connection.execute(
        "SELECT atttypid::regtype::text FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attname = %s AND attnum > 0 AND NOT attisdropped",
        (source.as_string(connection), column),
    ).fetchone()
    return None if row is None else str(row[0])


async def backfill(config: Config, plan: Plan, on_rows: OnRows, *, wait: bool = True) -> Sent | None:
    """Rows written, None without waiting. Raises PreconditionError, also when the reader could not do it, and
    ConnectError."""
    from cdc.source.connection import connect
    from cdc.source.slot import read_slot

    requests = plan.requests()
    if not wait and len(requests) > 1:
        raise PreconditionError("so many keys need somebody who waits", hint="leave --no-wait out, or name fewer")
    with closing(connect(config.postgres, name=NAME)) as connection:
        slot = read_slot(connection, config.postgres.slot)
        if slot is None or (wait and not slot.active):
            raise PreconditionError(
                "no reader is connected, so nobody would read the table",
                hint="start `cdc reader`; --no-wait leaves the request for its next start, when it has run before",
            )
        asking = Asking(connection, plan, requests)
        if not wait:
            asking.next()
            return None
        return await asking.through(config, on_rows)


@dataclass
class Asking:
    """A plan on its way through the reader, a few requests at once."""

    connection: Connection[Any]
    plan: Plan
    requests: Sequence[Request]
    rows: int = 0
    gone: int = 0
    open: dict[str, int] = field(default_factory=dict)  # id → an LSN behind the request

    def __post_init__(self) -> None:
        self._waiting = deque(self.requests)

    def next(self) -> None:
        """One request more. Raises PreconditionError, ConnectError."""
        import psycopg

        from cdc.source.backfill import ask
        from cdc.source.condition import keep
        from cdc.source.connection import connect_error

        request = self._waiting.popleft()
        if self.plan.condition is not None:
            keep(self.connection, request.id, ".".join(self.plan.name), self.plan.condition)
        try:
            self.open[str(request.id)] = ask(self.connection, request)
        except psycopg.Error as error:
            raise connect_error(error) from error

    async def through(self, config: Config, on_rows: OnRows) -> Sent:
        """To the end of all. Raises PreconditionError when one fails."""
        from cdc.kafka.progress import read_progress

        most = 1 if self.plan.rate else IN_FLIGHT  # each has a pace of its own
        while self._waiting or self.open:
            while self._waiting and len(self.open) < most:
                self.next()
            progress = await read_progress(config)
            running = 0
            for identity, asked_at in list(self.open.items()):
                if progress is not None and progress.end_lsn >= asked_at:
                    running += self._settle(identity, _known(progress, identity))
            on_rows(self.rows + self.gone + running, self.plan.total)
            if self.open:
                await asyncio.sleep(LOOK_SECONDS)
        return Sent(self.rows, self.gone)

    def _settle(self, identity: str, state: Backfill) -> int:
        """Rows of one that goes on."""
        if state.failed is not None:
            raise PreconditionError(
                f"the backfill of {state.table} failed: {state.failed}", hint="mend that, ask again"
            )
        if not state.done:
            return state.rows
        del self.open[identity]
        self.rows, self.gone = self.rows + state.rows, self.gone + state.gone
        return 0


def _known(progress: Progress, identity: str) -> Backfill:
    state = progress.backfills.get(identity)
    if state is None:
        raise PreconditionError(
            "the reader knows nothing of this backfill", hint="was there a resync meanwhile? ask again"
        )
    return state
