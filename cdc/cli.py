"""The command `cdc`: names the subcommands, and turns every error into one sentence with its remedy, never a traceback.

Exit codes: 0 done, 1 findings or differences, 2 an error a person has to mend, 70 an error of ours, 130 Ctrl-C.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cdc import __version__, commands, log
from cdc.commands.configuration import Options
from cdc.errors import CdcError

FOUND, REFUSED, INTERNAL, INTERRUPTED = 1, 2, 70, 130  # 70: EX_SOFTWARE of sysexits.h; 130: 128 + SIGINT
_UsageError: Any = typer.BadParameter.__base__  # typer brings its own click, or uses the one installed

app = typer.Typer(
    name="cdc",
    help="PostgreSQL → Kafka → Redis and FAISS, kept in step, with a measured lag.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"memory-cdc {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", envvar="CDC_CONFIG", help="The TOML file; else ./cdc.toml.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", envvar="CDC_VERBOSE", help="Logs details too.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Shows it.")] = False,
) -> None:
    """Options of every command."""
    context.obj = Options(config, verbose)


commands.register(app)


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """One command's exit code."""
    try:
        code = app(args=_options_first(arguments), prog_name="cdc", standalone_mode=False)
    except _UsageError as error:
        error.show()
        return REFUSED
    except CdcError as error:
        return _refuse(error.message, error.hint, "--json" in arguments)
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; nobody is there to be told
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 -- the top of every command: told with its kind and place
        if "--verbose" in arguments:
            sys.stderr.write("".join(log.places(error)))
        first = log.origin(error)
        message = f"an error nobody foresaw: {type(first).__name__} at {log.place(first)}"
        _refuse(message, "run it again with --verbose, and report what that shows", "--json" in arguments)
        return INTERNAL
    return code if isinstance(code, int) else 0


def _refuse(message: str, hint: str, as_json: bool) -> int:
    """One sentence and the remedy to stderr; for scripts also as JSON to stdout."""
    if as_json:
        typer.echo(json.dumps({"error": message, "hint": hint}, ensure_ascii=False))
    typer.echo(f"cdc: {message}{f' → {hint}' if hint else ''}", err=True)
    return REFUSED


def _options_first(arguments: Sequence[str]) -> list[str]:
    """`--config FILE` and `--verbose` may stand anywhere, also behind the command."""
    first: list[str] = []
    rest: list[str] = []
    pending = iter(arguments)
    for argument in pending:
        if argument == "--":
            return [*first, *rest, argument, *pending]
        if argument == "--config":
            first += [argument, *([value] if (value := next(pending, None)) is not None else [])]
        elif argument.startswith("--config=") or argument == "--verbose":
            first.append(argument)
        else:
            rest.append(argument)
    return [*first, *rest]


if __name__ == "__main__":
    main()
