"""`cdc verify`: every store against PostgreSQL, key by key, while writes go on."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from cdc.commands.asking import ask
from cdc.commands.configuration import configuration
from cdc.commands.outcome import Outcome, document, kinds_of
from cdc.errors import PreconditionError

if TYPE_CHECKING:
    from cdc.config import Config
    from consumers.verify import Differences, Written

STORES = ("redis", "faiss")
WAIT_SECONDS = 60.0  # for a store to catch up with the moment of a look; longer means it does not
SHOWN = 10  # keys named of each kind; --json names all


class Asked(NamedTuple):
    """One comparison. `epoch` is the stream's; `sample` None is every row."""

    config: Config
    schema: str
    name: str
    epoch: int
    sample: int | None
    on_progress: Callable[[int], None]

    @property
    def label(self) -> str:
        """The table."""
        return f"{self.schema}.{self.name}"


def verify(
    context: typer.Context,
    store: Annotated[Literal["redis", "faiss"] | None, typer.Option(help="One store only.")] = None,
    table: Annotated[str | None, typer.Option(help="One table only, as schema.table.")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="About so many rows a table, at random.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Sends the rows of tables that differ again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Prints JSON, with every key.")] = False,
) -> None:
    """Compares the stores with PostgreSQL key by key; exit code 1 when they differ."""
    config = configuration(context)
    on_progress, stores = progress(as_json), [store] if store else STORES
    before = ask(config, compare_all(config, stores, table, on_progress, sample=sample))
    after = None
    if repair and not all(outcome.equal for outcome in before):
        ask(config, mend(config, before, on_progress))
        after = ask(config, compare_all(config, stores, table, on_progress, sample=sample))
    outcomes = before if after is None else after
    if as_json:
        typer.echo(json.dumps(document(before, after), ensure_ascii=False))
    else:
        for outcome in outcomes:
            _show(outcome)
    raise typer.Exit(0 if all(outcome.equal for outcome in outcomes) else 1)


def progress(as_json: bool) -> Callable[[str], None]:
    """Overwrites one line of stderr, when a person sees it."""
    import sys

    if as_json or not sys.stderr.isatty():
        return lambda line: None
    return lambda line: typer.echo(f"\r\x1b[K{line}", err=True, nl=False)


async def compare_all(
    config: Config,
    stores: Sequence[str],
    wanted: str | None,
    on_progress: Callable[[str], None],
    *,
    sample: int | None = None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Every table a store holds, or the wanted one; each outcome is told when it is there. Raises CdcError."""
    from cdc.kafka.progress import read_progress

    tables = selected(config, wanted)
    written = await read_progress(config)
    if written is None:
        raise PreconditionError("the reader has never run, so there is nothing to compare", hint="start `cdc reader`")
    outcomes = []
    for store in stores:
        compared = tables if store == "redis" else [name for name in tables if ".".join(name) == config.faiss.table]
        for schema, name in compared:
            counting = _counting(f"comparing {store} with {schema}.{name}", on_progress)
            began = time.monotonic()
            found = await _COMPARISONS[store](Asked(config, schema, name, written.epoch, sample, counting))
            on_progress("")
            expires = store == "redis" and config.table(schema, name).ttl_seconds is not None
            took = time.monotonic() - began
            outcomes.append(Outcome(store, f"{schema}.{name}", found, expires, took, sample is not None))
            on_outcome(outcomes[-1])
    return outcomes


async def mend(config: Config, outcomes: Sequence[Outcome], on_progress: Callable[[str], None]) -> None:
    """Has the reader send the tables that differ again, so that every store gets them the ordinary way; rows that are
    not in PostgreSQL are swept at the end of that. Raises CdcError."""
    from cdc.commands.index_client import RemoteIndex
    from cdc.commands.snapshot import request

    wrong = [outcome for outcome in outcomes if not outcome.equal]
    for outcome in wrong:
        if outcome.store == "faiss" and (doubted := outcome.found.stale + outcome.found.different):
            async with RemoteIndex(config) as index:
                schema, name = outcome.table.split(".", 1)
                await index.doubt(schema, name, doubted)
    for table in sorted({outcome.table for outcome in wrong}):
        await request(config, table, on_progress)


def selected(config: Config, wanted: str | None) -> list[tuple[str, str]]:
    """The tables that travel. Raises PreconditionError when the wanted one does not."""
    from cdc.source.catalog import Catalog

    catalog = Catalog(None, config)
    try:
        tables = [(table.schema, table.name) for table in catalog.selected_tables()]
    finally:
        catalog.close()
    if wanted is None:
        return tables
    chosen = [name for name in tables if ".".join(name) == wanted]
    if not chosen:
        raise PreconditionError(
            f"the table {wanted} does not travel", hint=f"name one of {', '.join(map('.'.join, tables)) or 'none'}"
        )
    return chosen


def _counting(label: str, on_progress: Callable[[str], None]) -> Callable[[int], None]:
    return lambda rows: on_progress(f"{label}: {rows} rows")


async def _redis(asked: Asked) -> Differences:
    from cdc.commands.contents import RedisContent
    from cdc.source.table_rows import TableRows
    from consumers.applied import applied_in
    from consumers.redis import RedisStore
    from consumers.redis.sentinel import read_sentinel
    from consumers.store import Offsets
    from consumers.verify import compare

    config, table = asked.config, (asked.schema, asked.name)
    store = RedisStore(config)

    async def offsets() -> Offsets:
        held = await read_sentinel(store.link, config.redis.namespace)
        return held.offsets if held else {}

    rows = TableRows(config, *table, asked.epoch, sample=asked.sample)
    waiting = applied_in(config, "redis", [asked.label], offsets, WAIT_SECONDS)
    try:
        return await compare(
            store,
            rows,
            table,
            _bounded(waiting),
            content=RedisContent(config, *table, store),
            newest=_newest(asked),
            share=lambda: rows.share,
            on_progress=asked.on_progress,
        )
    finally:
        rows.close()
        await store.close()


async def _faiss(asked: Asked) -> Differences:
    from cdc.commands.index_client import RemoteIndex
    from cdc.commands.index_content import IndexContent
    from cdc.source.table_rows import TableRows
    from consumers.verify import compare

    config, table = asked.config, (asked.schema, asked.name)
    async with RemoteIndex(config) as index:
        needed = IndexContent.columns(config, *table)
        rows = TableRows(config, *table, asked.epoch, columns=needed, sample=asked.sample)
        try:
            return await compare(
                index,
                rows,
                table,
                lambda position: index.caught_up(position, WAIT_SECONDS),
                content=IndexContent(config, *table, index),
                newest=_newest(asked),
                share=lambda: rows.share,
                on_progress=asked.on_progress,
            )
        finally:
            rows.close()


def _newest(asked: Asked) -> Callable[[Any], Awaitable[dict[bytes, Written[bytes]]]]:
    from consumers.newest import newest

    return lambda keys: newest(asked.config, asked.schema, asked.name, keys)


_COMPARISONS = {"redis": _redis, "faiss": _faiss}


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


def _show(outcome: Outcome) -> None:
    if outcome.equal:
        note = f" ({len(outcome.found.missing)} expired)" if outcome.found.missing else ""
        typer.echo(f"{outcome.store}: {outcome.table} equals PostgreSQL in all {outcome.found.rows} rows{note}")
        return
    typer.echo(f"{outcome.store}: {outcome.table} differs from PostgreSQL's {outcome.found.rows} rows")
    for kind, keys in kinds_of(outcome.found).items():
        if keys:
            shown = ", ".join(key.decode(errors="replace") for key in keys[:SHOWN])
            more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
            typer.echo(f"  {kind} {len(keys)}: {shown}{more}")
