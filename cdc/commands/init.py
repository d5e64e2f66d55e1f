"""`cdc init`: a configuration to fill in, and what the pipeline wants to find in the database."""

from __future__ import annotations

from typing import Annotated

import typer


def init(
    dsn: Annotated[str | None, typer.Option(help="Also applies sql/ to this database (libpq's form).")] = None,
    bootstrap: Annotated[str, typer.Option(help="Kafka's brokers.")] = "localhost:9092",
    redis: Annotated[str, typer.Option(help="Redis's url.")] = "redis://localhost:6379/0",
) -> None:
    """Prints a commented cdc.toml for servers of your own: `cdc init > cdc.toml`."""
    from cdc import settings_file
    from cdc.errors import ConfigError
    from cdc.servers import without_password

    try:
        shown, password = without_password(dsn) if dsn is not None else (None, None)
    except ValueError as error:
        raise ConfigError(f"--dsn: {error}", hint="write it like 'host=db dbname=app user=cdc'") from None
    if dsn is not None:
        from cdc.migrations import migrate

        done = migrate(dsn)
        for name in done:
            typer.echo(f"applied sql/{name}", err=True)
        if not done:
            typer.echo("the database has all of sql/ already", err=True)
    if password is not None:
        typer.echo("the password is left out: set CDC_POSTGRES__PASSWORD_FILE to a file that holds it", err=True)
    typer.echo(settings_file.template(shown, bootstrap, redis), nl=False)
