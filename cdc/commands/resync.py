"""`cdc resync`: a new epoch after a gap."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cdc.commands.asking import ask
from cdc.commands.configuration import configuration


def resync(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Prints JSON.")] = False,
) -> None:
    """Begins a new epoch after a gap: the next reader reads every table again."""
    from cdc.position import format_lsn
    from cdc.resync import resync as begin

    config = configuration(context)
    progress = ask(config, begin(config))
    lsn = format_lsn(progress.end_lsn)
    if as_json:
        typer.echo(json.dumps({"epoch": progress.epoch, "lsn": lsn}))
    else:
        typer.echo(f"epoch {progress.epoch} begins at {lsn}; start `cdc reader`, which reads every table again")
