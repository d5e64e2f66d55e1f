"""`cdc backfill`: a running reader sends a part of a table again, beside the stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cdc.commands.asking import ask
from cdc.commands.configuration import configuration
from cdc.errors import ConfigError

if TYPE_CHECKING:
    from cdc.commands.asking_for_rows import OnRows


def backfill(
    context: typer.Context,
    table: Annotated[str, typer.Argument(help="schema.table, one of those that travel.")],
    more: Annotated[list[str] | None, typer.Argument(help="Further keys behind --keys.", metavar="[KEY]...")] = None,
    keys: Annotated[list[str] | None, typer.Option(help="Rows with these keys; without a row: a delete.")] = None,
    keys_file: Annotated[Path | None, typer.Option(help="A key a line, as text or as the topic's JSON.")] = None,
    where: Annotated[str | None, typer.Option(help="Rows that meet this SQL condition.")] = None,
    since: Annotated[str | None, typer.Option(help="Rows not older than that, like 1d or 90 minutes.")] = None,
    column: Annotated[str | None, typer.Option(help="The time for --since; else [tables] recency.")] = None,
    rate: Annotated[int | None, typer.Option(min=1, help="Rows a second at most.")] = None,
    wait: Annotated[bool, typer.Option(help="Waits until they are in Kafka.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Prints JSON.")] = False,
) -> None:
    """Sends some rows of a table again: by key, by condition, by age, or all; throttled if you like."""
    from cdc.commands.asking_for_rows import Wanted, planned
    from cdc.commands.asking_for_rows import backfill as sent_by

    config = configuration(context)
    if more and not keys:
        raise ConfigError("keys without --keys", hint="write cdc backfill TABLE --keys K1 K2 …")
    wanted = [*(keys or ()), *(more or ()), *_lines(keys_file)]
    if not wanted and (keys or keys_file):
        raise ConfigError("there is no key in that file", hint="write a key a line")
    plan = planned(config, Wanted(table, wanted, where, since, column, rate))
    with _bar(table, hidden=as_json or not wait) as on_rows:
        sent = ask(config, sent_by(config, plan, on_rows, wait=wait))
    if as_json:
        told = {} if sent is None else sent._asdict()
        typer.echo(json.dumps({"table": table, "done": sent is not None, **told}))
    elif sent is None:
        typer.echo(f"rows of {table} were asked for")
    else:
        gone = f", and {sent.gone} deletes of keys that have no row" if sent.gone else ""
        typer.echo(f"{sent.rows} rows of {table} are in Kafka again{gone}")


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        return [line for line in path.read_text("utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read", hint="name a text file with a key a line") from error


@contextmanager
def _bar(table: str, *, hidden: bool) -> Iterator[OnRows]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=hidden, transient=True) as bar:
        task = bar.add_task(f"backfill of {table}", total=None)

        def on_rows(rows: int, total: int | None) -> None:
            bar.update(task, completed=rows, total=max(rows, total) if total is not None else None)

        yield on_rows
