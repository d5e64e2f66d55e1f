"""What no record can mend, put in order in the store itself before rows are sent again.

In Redis: members of recency indexes that are no record of their user. In the index: vectors that no key stands for. In
both: records that claim a version newer than anything there is, and so would refuse what is sent.
"""

from __future__ import annotations

from cdc.commands.index_client import RemoteIndex
from cdc.commands.outcome import Outcome
from cdc.config import Config
from cdc.source.table_rows import TableRows
from consumers.redis import RedisStore


async def prepare(config: Config, outcome: Outcome) -> None:
    """Before the rows of this outcome come again. Raises CdcError."""
    found, (schema, name) = outcome.found, outcome.table.split(".", 1)
    keys = [*found.missing, *found.extra, *found.stale, *found.different]
    reached = await _reached(config, schema, name)
    if outcome.store == "redis":
        await _redis(config, schema, name, keys, reached)
    else:
        async with RemoteIndex(config) as index:
            await index.agree()
            await index.doubt(schema, name, keys, reached)


async def _redis(config: Config, schema: str, name: str, keys: list[bytes], reached: bytes) -> None:
    store = RedisStore(config)
    try:
        recency = await store.recency(schema, name)
        if recency is not None:
            await recency.strangers(remove=True)
        await store.lower(schema, name, keys, reached)
    finally:
        await store.close()


async def _reached(config: Config, schema: str, name: str) -> bytes:
    """A position that nothing written so far is beyond. Raises PreconditionError before the reader has run."""
    from cdc.errors import PreconditionError
    from cdc.kafka.progress import read_progress

    written = await read_progress(config)
    if written is None:
        raise PreconditionError("the reader has never run, so there is nothing to mend", hint="start `cdc reader`")
    rows = TableRows(config, schema, name, written.epoch)
    try:
        return await rows.position()
    finally:
        rows.close()
