"""Which configuration a command uses: --config or CDC_CONFIG, else ./cdc.toml, else what `cdc up` wrote here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cdc.errors import ConfigError

if TYPE_CHECKING:
    from cdc.config import Config

NAME = "cdc.toml"
DATA = Path(".cdc")  # of `cdc up`, in the folder where it was started


@dataclass(frozen=True, slots=True)
class Options:
    """What stands before the subcommand."""

    config: Path | None = None
    verbose: bool = False


def config_path(context: typer.Context) -> Path | None:
    """The file; None when the environment alone configures. Raises ConfigError when nothing does."""
    options: Options = context.obj
    if options.config is not None:
        return options.config
    for path in (Path(NAME), DATA / NAME):
        if path.exists():
            return path
    if "CDC_POSTGRES__DSN" in os.environ or "CDC_POSTGRES__DSN_FILE" in os.environ:
        return None
    raise ConfigError(
        f"there is no configuration: neither ./{NAME} nor {DATA / NAME}, and --config names none",
        hint="run `cdc up` for servers of your own, or `cdc init` for a template to fill in",
    )


def configuration(context: typer.Context) -> Config:
    """The validated configuration. Raises ConfigError."""
    from cdc.config import load

    return load(config_path(context))
