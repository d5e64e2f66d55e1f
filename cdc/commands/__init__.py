"""The subcommands. Modules here import at their top only what `cdc --help` needs; the rest inside each command."""

from __future__ import annotations

from importlib import import_module

import typer

COMMANDS = (
    "up", "down", "init", "doctor", "status", "top", "reader", "consume", "gateway", "search", "versions", "verify",
    "rebuild", "snapshot", "backfill", "resync", "pause", "resume", "cache", "dlq", "demo",
)  # fmt: skip
MODULES = {"down": "up", "resume": "pause"}  # where a command shares a module


def register(app: typer.Typer) -> None:
    """Adds every subcommand, in the order in which help lists them."""
    for name in COMMANDS:
        module = import_module(f"cdc.commands.{MODULES.get(name, name)}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(getattr(module, name))
