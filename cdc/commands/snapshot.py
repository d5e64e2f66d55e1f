"""`cdc snapshot`: a running reader reads a table again, beside the stream, and every store gets its rows anew."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from cdc.commands.asking import ask
from cdc.commands.configuration import configuration
from cdc.errors import PreconditionError

if TYPE_CHECKING:
    from cdc.config import Config

LOOK_SECONDS = 0.5  # between two looks at the progress topic


def snapshot(
    context: typer.Context,
    table: Annotated[str, typer.Argument(help="schema.table, one of those that travel.")],
    wait: Annotated[bool, typer.Option(help="Waits until all its rows are in Kafka.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Prints JSON.")] = False,
) -> None:
    """Sends all rows of a table again."""
    from cdc.commands.verify import progress

    config = configuration(context)
    rows = ask(config, request(config, table, progress(as_json), wait=wait))
    if as_json:
        typer.echo(json.dumps({"table": table, "rows": rows, "done": rows is not None}))
    else:
        typer.echo(f"{rows} rows of {table} are in Kafka again" if rows is not None else f"{table} was asked for")


async def request(
    config: Config,
    table: str,
    on_progress: Callable[[str], None],
    *,
    wait: bool = True,
    on_rows: Callable[[int, int | None], None] = lambda _rows, _total: None,
) -> int | None:
    """Asks the reader by a message in the stream; rows written, None without waiting. `on_rows` is told how many, and
    about how many there will be (None: the table was never analyzed). Raises PreconditionError."""
    from psycopg import sql

    from cdc.commands.verify import selected
    from cdc.kafka.progress import read_progress
    from cdc.source.connection import connect
    from cdc.source.events import MESSAGE_PREFIX
    from cdc.source.slot import read_slot
    from cdc.source.snapshot import ESTIMATE

    [(schema, name)] = selected(config, table)
    with connect(config.postgres, name="memory-cdc snapshot") as connection:
        slot = read_slot(connection, config.postgres.slot)
        if slot is None or (wait and not slot.active):
            raise PreconditionError(
                "no reader is connected, so nobody would read the table",
                hint="start `cdc reader`; --no-wait leaves the request for its next start, when it has run before",
            )
        content = json.dumps({"kind": "snapshot", "table": [schema, name]})
        connection.execute("SELECT pg_logical_emit_message(true, %s, %s)", (MESSAGE_PREFIX, content))
        row = connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::int8").fetchone()
        estimate = connection.execute(ESTIMATE, (sql.Identifier(schema, name).as_string(connection),)).fetchone()
    total = int(estimate[0]) if estimate and estimate[0] else None
    asked_at = int(row[0]) if row else 0
    while wait:
        progress = await read_progress(config)
        state = progress.snapshots.get(table) if progress else None
        if progress is not None and state is not None and progress.end_lsn >= asked_at:
            on_progress(f"snapshot of {table}: {state.rows} rows")
            on_rows(state.rows, None if total is None else max(total, state.rows))
            if state.done:
                on_progress("")
                return state.rows
        await asyncio.sleep(LOOK_SECONDS)
    return None
