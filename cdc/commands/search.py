"""`cdc search`: asks the gateway for the nearest records to a text, among those that filters let through."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdc.commands.asking import ask
from cdc.commands.configuration import configuration
from cdc.errors import ConfigError, ConnectError, PreconditionError, StoreError

if TYPE_CHECKING:
    from cdc.config import Config

ANSWER_SECONDS = 30.0
SHOWN = 100  # characters of a row's text
_FILTER = re.compile(r"([^<>=]+?)\s*(>=|<=|>|<|=)\s*(.*)", re.DOTALL)
_BOUNDS = {">=": "gte", "<=": "lte", ">": "gt", "<": "lt"}


def search(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="What to look for; the table's embedder reads it.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many hits.")] = 10,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", help="column=value, column>=value …; repeated, all have to hold; column=a|b: either."),
    ] = None,
    null: Annotated[list[str] | None, typer.Option("--null", help="A column that has to be NULL; repeated.")] = None,
    min_lsn: Annotated[str | None, typer.Option(help="Waits until the index has what committed below.")] = None,
    wait_seconds: Annotated[float, typer.Option(min=0.01, max=30, help="For --min-lsn.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Prints JSON.")] = False,
) -> None:
    """Searches by meaning; values are text, or numbers where the column holds numbers."""
    asked = {"text": text, "k": k, "filter": conditions(filters or [], null or []), "wait_seconds": wait_seconds}
    config = configuration(context)
    found = ask(config, _search(config, asked | ({"min_lsn": min_lsn} if min_lsn else {})))
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        _show(found, config.table(*config.faiss.table.split(".", 1)).text)


def conditions(filters: list[str], null: list[str]) -> dict[str, Any]:
    """The filter of POST /search. Raises ConfigError."""
    found: dict[str, Any] = dict.fromkeys(null)
    for text in filters:
        parts = _FILTER.fullmatch(text)
        if parts is None:
            raise ConfigError("a filter is not column=value", hint="e.g. --filter user_id=u1 --filter 'at>=2026-01-01'")
        column, sign, value = parts.groups()
        bounds = found.setdefault(column, {})
        name = _BOUNDS.get(sign, "in")
        if bounds is None or name in bounds:
            raise ConfigError(f"two filters on {column} say the same", hint="give one; column=a|b means either")
        bounds[name] = value.split("|") if sign == "=" else value
    return found


async def _search(config: Config, asked: dict[str, Any]) -> dict[str, Any]:
    import httpx

    from cdc.commands.addresses import gateway_address

    address = gateway_address(config)
    try:
        async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as client:
            answer = await client.post("/search", json=asked, timeout=ANSWER_SECONDS + asked["wait_seconds"])
    except httpx.HTTPError as error:
        raise ConnectError(
            f"the gateway does not answer at {address}: {type(error).__name__}",
            hint="start `cdc gateway`, or correct [gateway] host and port",
        ) from error
    if answer.status_code != 200:
        raise _refused(answer)
    return dict(answer.json())


def _refused(answer: Any) -> ConfigError | PreconditionError | StoreError:
    detail = answer.json()["detail"]
    said = detail if isinstance(detail, str) else "; ".join(f"{fault['loc'][-1]}: {fault['msg']}" for fault in detail)
    if answer.status_code == 412:
        return PreconditionError(said, hint="see `cdc status`: is the lag falling?")
    if answer.status_code == 422:
        return ConfigError(said, hint="correct the question")
    return StoreError(said, hint="see `cdc status`")


def _show(found: dict[str, Any], column: str | None) -> None:
    """Of a row the column that is embedded, where there is one."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("score", "key", "row"):
        table.add_column(heading)
    for hit in found["hits"]:
        columns = hit["row"] or {}
        row = columns.get(column) or (json.dumps(columns, ensure_ascii=False) if columns else "-")
        cut = row if len(row) <= SHOWN else row[:SHOWN] + "…"
        table.add_row(f"{hit['score']:.4f}", json.dumps(hit["key"], ensure_ascii=False), cut)
    Console(markup=False, highlight=False).print(table)
    if found["rows_error"]:
        typer.echo(f"without rows: {found['rows_error']}", err=True)
