"""`cdc verify`: every store against PostgreSQL, key by key, while writes go on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from cdc.commands.asking import ask, translated
from cdc.commands.configuration import configuration
from cdc.commands.outcome import Outcome, document, keep_outcome, kinds_of
from cdc.errors import CdcError, PreconditionError

if TYPE_CHECKING:
    from cdc.config import Config

Say = Callable[[str], None]
STORES = ("redis", "faiss")
SHOWN = 10  # keys named of each kind; --json names all


class Step(NamedTuple):
    """How far one comparison is: rows `done` of `total`, which is an estimate, None while nobody knows it."""

    store: str
    table: str
    done: int
    total: int | None
    seconds: float

    @property
    def line(self) -> str:
        """For a person."""
        if self.total is None:
            return f"comparing {self.store} with {self.table}: {self.done} rows"
        total = max(self.total, self.done)
        left = self.seconds * (total - self.done) / max(1, self.done)
        return f"comparing {self.store} with {self.table}: {self.done} of {total} rows, {left:.0f} s left"


def verify(
    context: typer.Context,
    store: Annotated[Literal["redis", "faiss"] | None, typer.Option(help="One store only.")] = None,
    table: Annotated[str | None, typer.Option(help="One table only, as schema.table.")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="About so many rows a table, at random.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Sends the rows of tables that differ again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Prints JSON, with every key.")] = False,
) -> None:
    """Compares the stores with PostgreSQL key by key; exit code 1 when they differ."""
    from cdc.commands.repair import mend

    config = configuration(context)
    say, stores = progress(as_json), [store] if store else STORES
    before = _compared(config, stores, table, sample, say, 0)
    after = None
    if repair and not all(outcome.equal for outcome in before):
        sent = ask(config, mend(config, before, say))
        after = _compared(config, stores, table, sample, say, sent)
    outcomes = before if after is None else after
    if as_json:
        typer.echo(json.dumps(document(before, after), ensure_ascii=False))
    else:
        for outcome in outcomes:
            _show(outcome)
    raise typer.Exit(0 if all(outcome.equal for outcome in outcomes) else 1)


def _compared(
    config: Config, stores: Sequence[str], table: str | None, sample: int | None, say: Say, repaired: int
) -> list[Outcome]:
    """The outcomes, each of them kept in the control schema, where this user may; one that came to no end, too."""
    told: list[Outcome] = []
    work = compare_all(config, stores, table, lambda step: say(step.line), sample=sample, on_outcome=told.append)
    try:
        return ask(config, work)
    finally:
        say("")
        for outcome in told:
            _keep(config, outcome._replace(repaired=repaired))


def _keep(config: Config, outcome: Outcome) -> None:
    """Who may not write there still gets an answer."""
    try:
        keep_outcome(config, outcome, "cdc verify")
    except CdcError as error:
        typer.echo(f"cdc: what came out is not in cdc.verify_runs, and in no metric: {error}", err=True)


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
    on_progress: Callable[[Step], None],
    *,
    sample: int | None = None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Every table a store holds, or the wanted one; each outcome is told when it is there. A store that cannot be asked
    does not keep the others from being compared: then the first such error is raised at the end. Raises CdcError."""
    from cdc.kafka.progress import read_progress

    compared = pairs(config, stores, wanted)
    written = await read_progress(config)
    if written is None:
        raise PreconditionError("the reader has never run, so there is nothing to compare", hint="start `cdc reader`")
    outcomes, failed = [], list[CdcError]()
    for store, table in compared:
        try:
            outcomes.append(await _compare(config, store, table, written.epoch, sample, on_progress))
        except _Failed as failure:
            outcomes.append(failure.outcome)
            failed.append(failure.error)
        on_outcome(outcomes[-1])
    if failed:
        raise failed[0]
    return outcomes


class _Failed(Exception):
    """A comparison that came to no end."""

    def __init__(self, outcome: Outcome, error: CdcError) -> None:
        super().__init__()
        self.outcome, self.error = outcome, error


async def _compare(
    config: Config, store: str, table: str, epoch: int, sample: int | None, on_progress: Callable[[Step], None]
) -> Outcome:
    """Raises _Failed."""
    from cdc.commands.comparing import Asked, compare_index, compare_redis
    from consumers.verify import Differences

    schema, name = table.split(".", 1)
    began = time.monotonic()

    def tell(done: int, total: int | None) -> None:
        on_progress(Step(store, table, done, total, time.monotonic() - began))

    comparison = compare_redis if store == "redis" else compare_index
    expires = store == "redis" and config.table(schema, name).ttl_seconds is not None
    try:
        found, share = await translated(config, comparison(Asked(config, schema, name, epoch, sample, tell)))
    except CdcError as error:
        took = time.monotonic() - began
        raise _Failed(Outcome(store, table, Differences(), expires, took, error=error.message), error) from error
    return Outcome(store, table, found, expires, time.monotonic() - began, share, found.position)


def pairs(config: Config, stores: Sequence[str] = STORES, wanted: str | None = None) -> list[tuple[str, str]]:
    """Which store is compared in which table (schema.table). Raises PreconditionError, see `selected`."""
    tables = [".".join(name) for name in selected(config, wanted)]
    return [(s, table) for s in stores for table in tables if s == "redis" or table == config.faiss.table]


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


def _show(outcome: Outcome) -> None:
    if outcome.equal:
        note = f" ({len(outcome.found.missing)} expired)" if outcome.found.missing else ""
        typer.echo(f"{outcome.store}: {outcome.table} equals PostgreSQL in all {outcome.found.rows} rows{note}")
        return
    typer.echo(f"{outcome.store}: {outcome.table} differs from PostgreSQL's {outcome.found.rows} rows")
    for fault in outcome.found.faults:
        typer.echo(f"  {fault}")
    for kind, keys in kinds_of(outcome.found).items():
        if keys:
            shown = ", ".join(key.decode(errors="replace") for key in keys[:SHOWN])
            more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
            typer.echo(f"  {kind} {len(keys)}: {shown}{more}")
