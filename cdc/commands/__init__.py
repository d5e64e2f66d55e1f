"""The subcommands. Modules here import at their top only what `cdc --help` needs; the rest inside each command."""

from __future__ import annotations

import typer

from cdc.commands import consume, reader, up


def register(app: typer.Typer) -> None:
    """Adds every subcommand, in the order in which help lists them."""
    app.command("up")(up.up)
    app.command("down")(up.down)
    app.command("reader")(reader.reader)
    app.add_typer(consume.app, name="consume")
