"""`cdc up` and `cdc down`: servers of our own and the pipeline on them, in one data folder."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cdc.commands.configuration import DATA

if TYPE_CHECKING:
    from cdc.config import Config
    from cdc.embedded import Endpoints

Data = Annotated[Path, typer.Option(help="The folder for all data, logs and the configuration.")]


def up(
    data: Data = DATA,
    servers_only: Annotated[bool, typer.Option("--servers-only", help="Without the pipeline.")] = False,
    provider: Annotated[
        Literal["auto", "system", "wheels"], typer.Option(help="Where the servers come from.")
    ] = "auto",
    tables: Annotated[str, typer.Option(help="schema.table patterns, by commas.")] = "public.memories",
    as_json: Annotated[bool, typer.Option("--json", help="Prints the endpoints as one line of JSON.")] = False,
) -> None:
    """Starts PostgreSQL, Kafka, Redis and the pipeline on them; Ctrl-C or `cdc down` stops all."""
    from cdc import log, settings_file
    from cdc.embedded import Servers

    log.configure("up")
    servers = Servers(data.absolute(), provider=provider, report=_say)
    try:
        with _interruptible():
            _say(f"Starting PostgreSQL, Kafka and Redis in {servers.folder.path}")
            with servers as endpoints:
                for name, program in endpoints.provider.items():
                    _say(f"  {name}: {program}")
                shown = settings_file.write_passfile(servers.folder.path, endpoints.postgres_dsn)
                endpoints = dataclasses.replace(endpoints, postgres_dsn=shown)
                path, config = _prepare(servers, endpoints, tables.split(","))
                if servers_only:
                    _show(endpoints, path, config, as_json, servers_only)
                    while True:
                        signal.pause()
                _run_pipeline(servers, endpoints, path, config, as_json)
    except KeyboardInterrupt:
        _say("Stopped")


def down(data: Data = DATA) -> None:
    """Stops what `cdc up` started."""
    from cdc.embedded import stop_running

    stopped = stop_running(data.absolute()) if data.exists() else []
    _say(
        f"Stopped {', '.join('cdc up' if name == 'owner' else name for name in stopped)}" if stopped else "Nothing ran"
    )


def _prepare(servers: Any, endpoints: Endpoints, tables: list[str]) -> tuple[Path, Config]:
    from cdc import config, migrations, settings_file

    migrations.migrate(endpoints.postgres_dsn)
    names = {name: f"metrics-{name}" for name in ("reader", "redis", "faiss")}
    names |= {"gateway_metrics": "metrics-gateway", "index": "index", "gateway": "gateway"}
    ports = servers.folder.ports(tuple(names.values()))
    chosen = {name: ports[remembered] for name, remembered in names.items()}
    path = settings_file.write_for_up(servers.folder.path, endpoints, tables, chosen)
    return path, config.load(path)


def _run_pipeline(servers: Any, endpoints: Endpoints, path: Path, config: Config, as_json: bool) -> None:
    from cdc.pipeline import Pipeline

    _say("Starting the reader, both consumers and the gateway")
    with Pipeline(servers.folder, path, config, _say) as pipeline:
        _show(endpoints, path, config, as_json, False)
        pipeline.watch()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt, once: stopping in order is not to be interrupted."""

    def interrupt(_number: int, _frame: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        _say("Stopping")
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _show(endpoints: Endpoints, path: Path, config: Config, as_json: bool, servers_only: bool) -> None:
    gateway = f"http://{config.gateway.host}:{config.gateway.port}"
    if as_json:
        found = {**dataclasses.asdict(endpoints), "config": str(path), "gateway": None if servers_only else gateway}
        typer.echo(json.dumps(found))
        return
    option = "" if path == (DATA / path.name).absolute() else f" --config {path}"
    folder = f" --data {path.parent}" if option else ""
    lines = {
        "write": f"psql '{endpoints.postgres_dsn}'",
        "look up": f"redis-cli -u {endpoints.redis_url} hgetall memory:<id>",
        "look": f"{gateway} in a browser",
        "search": f"curl -s {gateway}/search -H 'content-type: application/json' -d '{{\"text\": \"…\"}}'",
        "watch": f"cdc status{option}, cdc top{option}",
        "stop": f"Ctrl-C, or cdc down{folder}",
    }
    if servers_only:
        del lines["search"], lines["look"]
    for what, how in lines.items():  # no table of rich's: these lines are copied, and must not be wrapped
        typer.echo(f"  {what:8} {how}")


def _say(line: str) -> None:
    typer.echo(line, err=True)
