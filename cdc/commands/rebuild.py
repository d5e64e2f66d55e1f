"""`cdc rebuild`: a store filled anew from the topics, beside the live one, which goes on meanwhile."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cdc.commands.asking import ask
from cdc.commands.configuration import configuration
from cdc.errors import ConfigError

if TYPE_CHECKING:
    from cdc.config import Config
    from consumers.rebuild import Progress, Report, Since


def rebuild(
    context: typer.Context,
    store: Annotated[Literal["redis", "faiss"], typer.Argument(help="Which store.")],
    from_offset: Annotated[int | None, typer.Option(min=0, help="Replays into the live store from there.")] = None,
    from_time: Annotated[str | None, typer.Option(help="The same, from a time like 2026-05-01T12:00:00Z.")] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="Puts back what the last rebuild replaced.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Prints JSON.")] = False,
) -> None:
    """Fills a store anew from the topics, verifies it, then swaps it in."""
    config = configuration(context)
    if rollback:
        ask(config, _rollback(config, store))
        typer.echo(
            json.dumps({"store": store, "rolled_back": True}) if as_json else f"{store}: the store before is back"
        )
        return
    since = _since(from_offset, from_time)
    with _bar(store, hidden=as_json and not sys.stderr.isatty()) as on_progress:
        report = ask(config, fill_anew(config, store, since, on_progress))
    if as_json:
        typer.echo(json.dumps(document(store, report), ensure_ascii=False))
    else:
        _show(store, report)


def _since(offset: int | None, time: str | None) -> Since | None:
    from consumers.rebuild import Since

    if offset is not None and time is not None:
        raise ConfigError("--from-offset and --from-time exclude each other", hint="give one of them")
    if time is None:
        return None if offset is None else Since(offset=offset)
    try:
        moment = datetime.fromisoformat(time)
    except ValueError as error:
        raise ConfigError(f"{time!r} is no time", hint="write it like 2026-05-01T12:00:00Z") from error
    return Since(time_ms=int(moment.timestamp() * 1000))  # without a zone it is this machine's


async def fill_anew(config: Config, name: str, since: Since | None, on_progress: Callable[[Progress], None]) -> Report:
    """`since` None: a shadow, verified and swapped in; else the live store from there on. Raises CdcError."""
    from cdc.commands.index_client import RemoteIndex
    from cdc.garbage import collect_rarely
    from consumers.faiss import FaissStore
    from consumers.rebuild import rebuild, refill
    from consumers.redis import RedisStore

    collect_rarely()
    tables = config.postgres.tables if name == "redis" else (config.faiss.table,)
    store: Any = RedisStore(config) if name == "redis" else FaissStore(config)
    async with RemoteIndex(config) as index:
        try:
            if since is not None:
                return await refill(config, store, since, tables=tables, on_progress=on_progress)
            live: Any = store if name == "redis" else index
            return await rebuild(config, store, tables=tables, live=live, on_progress=on_progress)
        finally:
            await store.close()


async def _rollback(config: Config, name: str) -> None:
    from consumers.faiss import FaissStore
    from consumers.rebuild import rollback
    from consumers.redis import RedisStore

    store: Any = RedisStore(config) if name == "redis" else FaissStore(config)
    try:
        await rollback(store)
    finally:
        await store.close()


@contextmanager
def _bar(store: str, *, hidden: bool) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), disable=hidden) as bar:
        task = bar.add_task(store, total=None)

        def on_progress(at: Progress) -> None:
            bar.update(task, description=f"{store}: {at.phase}", completed=at.done, total=at.total)

        yield on_progress


def document(store: str, report: Report) -> dict[str, Any]:
    """For scripts."""
    counts = {
        table: {"rebuilt": rebuilt, "topics": topics, "replaced": live}
        for table, (rebuilt, topics, live) in report.counts.items()
    }
    return {
        "store": store,
        "swapped": report.swapped,
        "records": report.records,
        "seconds": round(report.seconds, 3),
        "rejected": dict(report.rejected),
        "rows": counts,
        "differences_of_replaced": len(report.live_differences),
        "replaced_unreadable": report.live_error or None,
    }


def _show(store: str, report: Report) -> None:
    rate = report.records / report.seconds if report.seconds else 0
    typer.echo(f"{store}: {report.records} records in {report.seconds:.1f} s, {rate:,.0f} a second")
    for table, (rebuilt, topics, live) in report.counts.items():
        replaced = "could not be read" if live is None else f"had {live} rows"
        typer.echo(f"  {table}: {rebuilt} rows, as the topics say ({topics}); the replaced store {replaced}")
    if report.rejected:
        typer.echo(f"  dead letters: {', '.join(f'{n} {reason}' for reason, n in report.rejected.items())}")
    if report.live_differences:
        typer.echo(f"  the replaced store was wrong in {len(report.live_differences)} keys")
    if report.swapped:
        typer.echo(f"  swapped in; `cdc rebuild {store} --rollback` puts the old one back")
