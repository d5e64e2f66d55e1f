"""One table in one store against PostgreSQL: what `consumers.verify` is given to compare Redis and the index."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from cdc.commands.contents import RedisContent
from cdc.commands.index_client import RemoteIndex
from cdc.commands.index_content import IndexContent
from cdc.config import Config
from cdc.errors import PreconditionError
from cdc.source.table_rows import TableRows
from consumers.applied import applied_in
from consumers.latest import Latest
from consumers.marks import ahead
from consumers.newest import newest
from consumers.redis import RedisStore
from consumers.redis.sentinel import read_sentinel
from consumers.replay import span_ends
from consumers.stamps import Stamps
from consumers.store import Offsets, Record
from consumers.verify import Differences, Structure, Written, compare

WAIT_SECONDS = 60.0  # for a store to catch up with the moment of a look; longer means it does not


class Asked(NamedTuple):
    """One comparison. `epoch` is the stream's; `sample` None is every row; `on_progress` gets rows done, and how many
    there are as far as that is known."""

    config: Config
    schema: str
    name: str
    epoch: int
    sample: int | None
    on_progress: Callable[[int, int | None], None]

    @property
    def table(self) -> tuple[str, str]:
        """Schema and name."""
        return self.schema, self.name

    @property
    def topic(self) -> str:
        """Of the table."""
        return f"{self.config.kafka.prefix}.{self.schema}.{self.name}"


class Compared(NamedTuple):
    """What was found, and in which share of the rows."""

    found: Differences
    share: float


class _Source(msgspec.Struct, gc=False):
    ts_us: int


class _Change(msgspec.Struct, gc=False):
    op: str
    source: _Source


_CHANGE = msgspec.json.Decoder(_Change)


async def compare_redis(asked: Asked) -> Compared:
    """Every field, version and recency index. Raises CdcError, and what the clients raise."""
    store = RedisStore(asked.config)

    async def offsets() -> Offsets:
        held = await read_sentinel(store.link, asked.config.redis.namespace)
        return held.offsets if held else {}

    async def structure(rows: TableRows) -> Structure:
        recency = await store.recency(*asked.table)
        misplaced = await recency.misplaced() if recency else []
        strangers = await recency.strangers() if recency else []
        reached, positions = await store.marks(*asked.table)
        faults = ahead("redis", reached, await _ends(asked), positions, await rows.position())
        different = [*misplaced, *(one.key for one in strangers if one.live)]
        return Structure(different, [one.key for one in strangers if not one.live], faults)

    label = f"{asked.schema}.{asked.name}"
    waiting = _bounded(applied_in(asked.config, "redis", [label], offsets, WAIT_SECONDS))
    rows = TableRows(asked.config, *asked.table, asked.epoch, sample=asked.sample)
    try:
        content = RedisContent(asked.config, *asked.table, store)
        return await _compared(asked, rows, store, content, waiting, structure, written_as)
    finally:
        rows.close()
        await store.close()


async def compare_index(asked: Asked) -> Compared:
    """Every vector and version, and whether searches find them. Raises CdcError, and what the clients raise."""
    needed = IndexContent.columns(asked.config, *asked.table)
    async with RemoteIndex(asked.config) as index:

        async def structure(rows: TableRows) -> Structure:
            found, stats = await index.disagreement(), await index.stats()
            offsets = {(topic, partition): offset for topic, partition, offset in stats.offsets}
            positions = {"floor": found.floor.encode(), "watermark": found.watermark.encode()}
            faults = ahead("faiss", offsets, await _ends(asked), positions, await rows.position())
            if found.nameless:
                faults.append(f"{found.nameless} vectors of the index belong to no key → run `cdc verify --repair`")
            return Structure([k.encode() for k in found.different], [k.encode() for k in found.extra], faults)

        async def waiting(position: bytes) -> None:
            await index.caught_up(position, WAIT_SECONDS)

        rows = TableRows(asked.config, *asked.table, asked.epoch, columns=needed, sample=asked.sample)
        try:
            content = IndexContent(asked.config, *asked.table, index)
            return await _compared(asked, rows, index, content, waiting, structure, versioned_as)
        finally:
            rows.close()


async def _compared(
    asked: Asked,
    rows: TableRows,
    store: Any,
    content: Any,
    waiting: Callable[[bytes], Awaitable[None]],
    structure: Callable[[TableRows], Awaitable[Structure]],
    stamp: Callable[[Record], bytes],
) -> Compared:
    """A sample reads no topic for versions, and looks at nothing beside the records."""

    async def held(keys: Sequence[bytes]) -> list[bytes | None]:
        found: list[bytes | None] = await store.stamps(*asked.table, keys)
        return found

    async def compared(stamps: Stamps | None) -> Differences:
        return await compare(
            store,
            rows,
            asked.table,
            waiting,
            content=content,
            newest=_newest(asked),
            share=lambda: rows.share,
            stamps=stamps,
            structure=(lambda: structure(rows)) if stamps else None,
            on_progress=lambda done: asked.on_progress(done, rows.total),
        )

    if asked.sample is not None:
        return Compared(await compared(None), rows.share)
    async with Latest(asked.config, *asked.table, stamp) as topic:
        return Compared(await compared(Stamps(topic, held)), 1.0)


def written_as(record: Record) -> bytes:
    """What Redis keeps of a record's version; b"" for a delete. See stamp.lua."""
    if record.value is None:
        return b""
    change = _CHANGE.decode(record.value)
    return b"" if change.op == "d" else b"%b|%b|%d" % (record.position, record.vector, change.source.ts_us)


def versioned_as(record: Record) -> bytes:
    """What the index keeps; b"" for a delete."""
    if record.value is None or _CHANGE.decode(record.value).op == "d":
        return b""
    return b"%b|%b" % (record.position, record.vector)


async def _ends(asked: Asked) -> Offsets:
    return await span_ends(asked.config, [asked.topic])


def _newest(asked: Asked) -> Callable[[Any], Awaitable[dict[bytes, Written[bytes]]]]:
    return lambda keys: newest(asked.config, asked.schema, asked.name, keys)


def _bounded(waiting: Callable[[bytes], Awaitable[None]]) -> Callable[[bytes], Awaitable[None]]:
    async def caught_up(position: bytes) -> None:
        try:
            await waiting(position)
        except TimeoutError as error:
            raise PreconditionError(
                f"Redis did not catch up with the source within {WAIT_SECONDS:g} s",
                hint="see `cdc status`: are reader and consumer running, and is the lag falling?",
            ) from error

    return caught_up
