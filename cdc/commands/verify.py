"""`cdc verify`: every store against PostgreSQL, key by key, while writes go on."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from cdc.commands.asking import ask
from cdc.commands.configuration import configuration
from cdc.errors import PreconditionError

if TYPE_CHECKING:
    from cdc.config import Config
    from consumers.verify import Differences

STORES = ("redis", "faiss")
WAIT_SECONDS = 60.0  # for a store to catch up with the moment of a look; longer means it does not
SHOWN = 10  # keys named of each kind; --json names all


class Outcome(NamedTuple):
    """One table in one store. `expires`: its records have a time to live, so that missing ones are no difference."""

    store: str
    table: str
    found: Differences
    expires: bool

    @property
    def equal(self) -> bool:
        """Nothing differs that should not."""
        found = self.found
        return not (found.extra or found.stale or found.unsettled or (found.missing and not self.expires))

    def document(self) -> dict[str, Any]:
        """For scripts."""
        kinds = {kind: [key.decode() for key in keys] for kind, keys in kinds_of(self.found).items()}
        return {"store": self.store, "table": self.table, "equal": self.equal, "rows": self.found.rows, **kinds}


def verify(
    context: typer.Context,
    store: Annotated[Literal["redis", "faiss"] | None, typer.Option(help="One store only.")] = None,
    table: Annotated[str | None, typer.Option(help="One table only, as schema.table.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Sends the rows of tables that differ again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Prints JSON, with every key.")] = False,
) -> None:
    """Compares the stores with PostgreSQL key by key; exit code 1 when they differ."""
    config = configuration(context)
    outcomes = ask(config, compare_all(config, [store] if store else STORES, table, progress(as_json)))
    if repair and (tables := sorted({outcome.table for outcome in outcomes if not outcome.equal})):
        from cdc.commands.snapshot import request

        for name in tables:
            ask(config, request(config, name, progress(as_json)))
        outcomes = ask(config, compare_all(config, [store] if store else STORES, table, progress(as_json)))
    equal = all(outcome.equal for outcome in outcomes)
    if as_json:
        typer.echo(json.dumps({"equal": equal, "comparisons": [o.document() for o in outcomes]}, ensure_ascii=False))
    else:
        for outcome in outcomes:
            _show(outcome)
    raise typer.Exit(0 if equal else 1)


def progress(as_json: bool) -> Callable[[str], None]:
    """Overwrites one line of stderr, when a person sees it."""
    import sys

    if as_json or not sys.stderr.isatty():
        return lambda line: None
    return lambda line: typer.echo(f"\r\x1b[K{line}", err=True, nl=False)


async def compare_all(
    config: Config, stores: Any, wanted: str | None, on_progress: Callable[[str], None]
) -> list[Outcome]:
    """Every table a store holds, or the wanted one. Raises CdcError."""
    from cdc.kafka.progress import read_progress

    tables = selected(config, wanted)
    written = await read_progress(config)
    if written is None:
        raise PreconditionError("the reader has never run, so there is nothing to compare", hint="start `cdc reader`")
    outcomes = []
    for store in stores:
        compared = tables if store == "redis" else [name for name in tables if ".".join(name) == config.faiss.table]
        for schema, name in compared:
            label = f"comparing {store} with {schema}.{name}"
            found = await _COMPARISONS[store](config, schema, name, written.epoch, _counting(label, on_progress))
            on_progress("")
            expires = store == "redis" and config.table(schema, name).ttl_seconds is not None
            outcomes.append(Outcome(store, f"{schema}.{name}", found, expires))
    return outcomes


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


async def _redis(config: Config, schema: str, name: str, epoch: int, on_progress: Callable[[int], None]) -> Differences:
    from cdc.commands.contents import RedisContent
    from cdc.source.table_rows import TableRows
    from consumers.redis import RedisStore
    from consumers.redis.sentinel import read_sentinel
    from consumers.store import Offsets
    from consumers.verify import applied_in, compare

    store = RedisStore(config)

    async def offsets() -> Offsets:
        held = await read_sentinel(store.link, config.redis.namespace)
        return held.offsets if held else {}

    rows = TableRows(config, schema, name, epoch)
    waiting = applied_in(config, "redis", [f"{schema}.{name}"], offsets, WAIT_SECONDS)
    content = RedisContent(config, schema, name, store)
    try:
        return await compare(
            store, rows, (schema, name), _bounded(waiting), matches=content.matches, on_progress=on_progress
        )
    finally:
        rows.close()
        await store.close()


async def _faiss(config: Config, schema: str, name: str, epoch: int, on_progress: Callable[[int], None]) -> Differences:
    from cdc.commands.contents import IndexContent
    from cdc.commands.index_client import RemoteIndex
    from cdc.source.table_rows import TableRows
    from consumers.verify import compare

    async with RemoteIndex(config) as index:
        rows = TableRows(config, schema, name, epoch)
        content = IndexContent(config, schema, name, index)
        try:
            return await compare(
                index,
                rows,
                (schema, name),
                lambda position: index.caught_up(position, WAIT_SECONDS),
                matches=content.matches,
                on_progress=on_progress,
            )
        finally:
            rows.close()


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


def kinds_of(found: Differences) -> dict[str, list[bytes]]:
    """Keys by kind."""
    return {"missing": found.missing, "extra": found.extra, "stale": found.stale, "unsettled": found.unsettled}


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
