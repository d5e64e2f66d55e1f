"""`cdc dlq`: the records a store could not take: seeing them, sending them through again, letting them go."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cdc.commands.asking import ask
from cdc.commands.configuration import configuration

if TYPE_CHECKING:
    from cdc.commands.letters import Filed
    from cdc.config import Config

app = typer.Typer(help="Dead letters: the records a store could not take.", no_args_is_help=True)

Store = Annotated[Literal["redis", "faiss"], typer.Argument(help="Whose letters.")]
AnyStore = Annotated[Literal["redis", "faiss", "reader"], typer.Argument(help="Whose letters.")]
Key = Annotated[list[str] | None, typer.Option("--key", help="Of this key, as JSON or as `cdc versions` takes it.")]
Reason = Annotated[str | None, typer.Option("--reason", help="With this reason.")]
All = Annotated[bool, typer.Option("--all", help="Every open letter.")]
AsJson = Annotated[bool, typer.Option("--json", help="Prints JSON.")]


@app.command("list")
def list_letters(
    context: typer.Context,
    store: AnyStore,
    parked: Annotated[bool, typer.Option("--parked", help="Open letters only.")] = False,
    show_values: Annotated[bool, typer.Option("--show-values", help="With the rows themselves.")] = False,
    as_json: AsJson = False,
) -> None:
    """Every letter with its reason and what became of it; exit code 1 while any is open."""
    from cdc.commands.letters import filed

    config = configuration(context)
    found = ask(config, filed(config, store, with_values=show_values))
    shown = [each for each in found if each.open or not parked]
    left = sum(each.open for each in found)
    if as_json:
        documents = [document(config, each, show_values) for each in shown]
        typer.echo(json.dumps({"store": store, "open": left, "letters": documents}, ensure_ascii=False))
    else:
        _show(config, store, shown, left, show_values)
    raise typer.Exit(1 if left else 0)


@app.command()
def redrive(
    context: typer.Context,
    store: Store,
    key: Key = None,
    reason: Reason = None,
    every: All = False,
    wait_seconds: Annotated[float, typer.Option(min=0, help="How long to wait for the consumer's answers.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Sends letters through the store once more, by its running consumer; exit code 1 when one stays open."""
    from cdc.commands.letters import redriven

    config, wanted = _meant(context, store, key, reason, every)
    results = ask(config, redriven(config, store, wanted, wait_seconds)) if wanted else {}
    _report(config, store, results, as_json)
    raise typer.Exit(0 if all(result in ("redriven", "superseded") for result in results.values()) else 1)


@app.command()
def discard(
    context: typer.Context,
    store: AnyStore,
    key: Key = None,
    reason: Reason = None,
    every: All = False,
    as_json: AsJson = False,
) -> None:
    """Closes letters without applying them: for records of other programs. `cdc verify` still names what is missing."""
    from cdc.commands.letters import discarded

    config, wanted = _meant(context, store, key, reason, every)
    results = ask(config, discarded(config, store, wanted)) if wanted else {}
    _report(config, store, results, as_json)


def _meant(
    context: typer.Context, store: str, key: list[str] | None, reason: str | None, every: bool
) -> tuple[Config, list[Filed]]:
    """The config, and the open letters that were chosen."""
    from cdc.commands.letters import chosen, filed

    config = configuration(context)
    return config, chosen(ask(config, filed(config, store)), key, reason, every)


def document(config: Config, each: Filed, with_value: bool) -> dict[str, Any]:
    """One letter for scripts; its value only when asked for, since it is a row."""
    from cdc.position import decode_position

    letter = each.letter
    found: dict[str, Any] = {
        "id": letter.id,
        "table": _table(config, letter.topic),
        "key": _text(letter.key),
        "position": str(decode_position(letter.position)) if letter.position else None,
        "reason": letter.reason,
        "message": letter.message,
        "age_seconds": round(max(0.0, time.time() - letter.time_ms / 1000), 1),
        "tries": each.tries,
        "state": each.state,
    }
    if with_value:
        found["value"] = _text(letter.value)
    return found


def _table(config: Config, topic: str) -> str:
    return topic.removeprefix(f"{config.kafka.prefix}.")


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode(errors="replace")


def _show(config: Config, store: str, found: Sequence[Filed], left: int, with_values: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if not found:
        typer.echo(f"{store}: no dead letters{'' if left == 0 else ' of that kind'}")
        return
    view = Table(title=f"dead letters of {store}: {left} open")
    names = ["table", "key", "position", "reason", "message", "age", "state"]
    for name in [*names, *(["value"] if with_values else [])]:
        view.add_column(name, overflow="fold")
    for each in found:
        told = document(config, each, with_values)
        told["age"] = _age(told["age_seconds"])
        view.add_row(*(escape(str(told[name] or "")) for name in names),
                     *([escape(told["value"] or "")] if with_values else []))  # fmt: skip
    Console(highlight=False).print(view)
    if left:
        typer.echo(f"`cdc dlq redrive {store} --all` tries them again; a newer record of the key settles one by itself")


def _age(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _report(config: Config, store: str, results: dict[Filed, str], as_json: bool) -> None:
    if as_json:
        documents = [{**document(config, each, False), "result": result} for each, result in results.items()]
        typer.echo(json.dumps({"store": store, "letters": documents}, ensure_ascii=False))
        return
    if not results:
        typer.echo(f"{store}: no open letter fits")
    for line in _lines(config, results):
        typer.echo(line)


def _lines(config: Config, results: dict[Filed, str]) -> Iterable[str]:
    for each, result in results.items():
        yield f"{_table(config, each.letter.topic)} {_text(each.letter.key)}: {result}"
