"""`cdc pause` and `cdc resume`: the reader or a store's consumer stands still at its next batch, or goes on."""

from __future__ import annotations

import asyncio
import getpass
import json
import socket
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cdc.commands.asking import ask
from cdc.commands.configuration import configuration

if TYPE_CHECKING:
    from cdc.config import Config

TAKEN_SECONDS = 10.0  # a process that runs hears a wish within a second
LOOK_SECONDS = 0.2
ANSWER_SECONDS = 3.0  # a healthy process answers in milliseconds

Component = Literal["reader", "redis", "faiss"]  # as cdc.wishes has it, whose clients `cdc --help` need not load
Which = Annotated[Component, typer.Argument(help="The reader, or the store whose consumer is meant.")]
Why = Annotated[str, typer.Option("--why", help="What others are to see beside it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Prints JSON.")]


def pause(context: typer.Context, component: Which, why: Why = "", as_json: AsJson = False) -> None:
    """Lets the reader or a store's consumer stand still until `cdc resume`; it keeps its slot or its partitions."""
    _command(context, component, True, why, as_json)


def resume(context: typer.Context, component: Which, as_json: AsJson = False) -> None:
    """Lets it go on."""
    _command(context, component, False, "", as_json)


def _command(context: typer.Context, component: Component, paused: bool, why: str, as_json: bool) -> None:
    config = configuration(context)
    person = f"{getpass.getuser()}@{socket.gethostname()}"
    found = ask(config, wished(config, component, paused, person, why))
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    state = "stands still" if paused else "goes on"
    typer.echo(f"{component} {state}" if found["taken"] else f"{component}: noted; {found['reason']}")


async def wished(config: Config, component: Component, paused: bool, by: str, why: str = "") -> dict[str, Any]:
    """Notes the wish and waits until the process has heard it; `taken` False, with the reason, when it does not answer.

    Raises KafkaError, PreconditionError."""
    from cdc.wishes import Wish, make_wish

    wish = Wish(paused, by, time.time(), why)
    await make_wish(config.kafka, component, wish)
    reason = await _heard(config, component, paused)
    told = {"component": component, "paused": paused, "by": by, "why": why, "at": wish.at}
    return {**told, "taken": reason is None, "reason": reason}


async def _heard(config: Config, component: Component, paused: bool) -> str | None:
    """None once its metric says so; else why it does not."""
    from cdc.commands.addresses import metrics_address
    from cdc.commands.exposition import read_samples, total
    from cdc.errors import ConnectError

    reason = f"its process has not heard it within {TAKEN_SECONDS:g} s"
    deadline = time.monotonic() + TAKEN_SECONDS
    while time.monotonic() < deadline:
        try:
            samples = await read_samples(metrics_address(config, component), ANSWER_SECONDS)
        except ConnectError as error:
            return f"its process does not answer, and will see it at its start: {error.message}"
        if total(samples, "cdc_paused", component=component) == float(paused):
            return None
        await asyncio.sleep(LOOK_SECONDS)
    return reason
