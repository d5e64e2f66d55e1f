"""Mending what a verify found, through the ordinary path: the reader sends rows again, and every store gets them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psycopg import Connection

    from cdc.commands.outcome import Outcome
    from cdc.config import Config
    from cdc.source.events import Table

Say = Callable[[str], None]
AT_ONCE = 1000  # keys looked at in one statement


async def repair_keys(config: Config, table: str, keys: Sequence[bytes], say: Say, *, rows: int | None = None) -> int:
    """Has these keys of a table (schema.table), written as the topics write them, sent again, deletes for those that
    have no row; how many rows and deletes were sent. The whole table instead, with a sweep, when they are more than
    `[postgres] repair_whole_share` of its `rows` (None: counted), or when a key cannot be asked for
    because it is none of the table's. Raises PreconditionError, ConnectError."""
    from cdc.commands.asking_for_rows import Plan, backfill
    from cdc.commands.snapshot import request

    wanted = list(dict.fromkeys(keys))
    if not wanted:
        return 0
    texts = _askable(config, table, wanted, rows)
    if texts is None:
        return await request(config, table, say) or 0
    schema, name = table.split(".", 1)
    plan = Plan((schema, name), texts, None, len(texts), config.postgres.backfill_rows_per_second)
    sent = await backfill(config, plan, lambda done, total: say(f"repair of {table}: {done} of {total} keys"))
    say("")
    return 0 if sent is None else sum(sent)


async def mend(config: Config, outcomes: Sequence[Outcome], say: Say) -> int:
    """All that outcomes of a verify call missing, extra, stale or different; before that, what no record can mend is
    put in order in the store itself. Returns how many rows and deletes were sent. Raises CdcError."""
    from cdc.commands.mending import prepare

    sent = 0
    wrong = [outcome for outcome in outcomes if not outcome.equal]
    for outcome in wrong:
        await prepare(config, outcome)
    for table in sorted({outcome.table for outcome in wrong}):
        found = [outcome.found for outcome in wrong if outcome.table == table]
        keys = [key for one in found for key in (*one.missing, *one.extra, *one.stale, *one.different)]
        sent += await repair_keys(config, table, keys, say, rows=max(one.rows for one in found))
    return sent


def _askable(config: Config, table: str, keys: Sequence[bytes], rows: int | None) -> list[list[str]] | None:
    """The keys' texts; None when the whole table is to be sent."""
    from cdc.commands.verify import selected
    from cdc.source.catalog import Catalog
    from cdc.source.condition import Refused
    from cdc.source.connection import connect
    from cdc.source.key_text import key_texts

    [name] = selected(config, table)
    with closing(connect(config.postgres, name="memory-cdc repair")) as connection:
        if len(keys) > config.postgres.repair_whole_share * (_count(connection, name) if rows is None else rows):
            return None
        catalog = Catalog(connection, config)
        found = catalog.table(*name)
        try:
            texts = [key_texts(key, found, catalog.type_of) for key in keys]
            return texts if _same(connection, found, texts, keys) else None
        except Refused:
            return None  # of a former key, or nobody's: the sweep at the end of a snapshot removes it


def _same(connection: Connection[Any], table: Table, texts: list[list[str]], keys: Sequence[bytes]) -> bool:
    """Whether PostgreSQL's texts of these keys are the topics' keys that were asked for."""
    from cdc.source.key_text import topic_keys

    starts = range(0, len(texts), AT_ONCE)
    return all(topic_keys(connection, table, texts[s : s + AT_ONCE]) == list(keys[s : s + AT_ONCE]) for s in starts)


def _count(connection: Connection[Any], name: tuple[str, str]) -> int:
    from psycopg import sql

    row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(*name))).fetchone()
    return int(row[0]) if row else 0
