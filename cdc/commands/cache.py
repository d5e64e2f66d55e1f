"""`cdc cache`: Redis emptied of our records, a table or all; its consumer fills it again from the topics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdc.commands.asking import ask
from cdc.commands.configuration import configuration

if TYPE_CHECKING:
    from cdc.config import Config
    from consumers.redis import RedisStore

app = typer.Typer(help="Working memory in Redis.", no_args_is_help=True)

LOOK_SECONDS = 0.2  # between two looks how far it is


@app.command("clear")
def clear_command(
    context: typer.Context,
    table: Annotated[str | None, typer.Option("--table", help="schema.table; else all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Prints JSON.")] = False,
) -> None:
    """Removes our records, nothing else, and waits until the Redis consumer has filled them again."""
    config = configuration(context)
    told = ""

    def show(stage: str, done: int, total: int) -> None:
        nonlocal told
        if stage != told and not as_json:
            typer.echo(stage, err=True)
        told = stage

    found = ask(config, cleared(config, table, show))
    if as_json:
        typer.echo(json.dumps(found))
    else:
        for name, counts in found["tables"].items():
            typer.echo(f"{name}: {counts['before']} records before, {counts['after']} now")


async def cleared(config: Config, table: str | None, on_progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Empties it and waits until it is filled again; records of each table before and after. Ends early by being
    cancelled, which stops the waiting only. Raises StoreError, PreconditionError, ConnectError."""
    from consumers.redis import RedisStore
    from consumers.redis.clearing import clear, refilled

    store = RedisStore(config)
    try:
        before = await _counts(store, config, table)
        wanted = await clear(store.link, config, table)
        while not await refilled(store.link, config, wanted, on_progress):
            await asyncio.sleep(LOOK_SECONDS)
        after = await _counts(store, config, table)
    finally:
        await store.close()
    return {"tables": {name: {"before": before.get(name, 0), "after": count} for name, count in after.items()}}


async def _counts(store: RedisStore, config: Config, table: str | None) -> dict[str, int]:
    from consumers.redis.sentinel import read_sentinel

    sentinel = await read_sentinel(store.link, config.redis.namespace)
    tables = sorted(sentinel.tables) if sentinel is not None else []
    return {name: await store.count(*name.split(".", 1)) for name in tables if table in (None, name)}
