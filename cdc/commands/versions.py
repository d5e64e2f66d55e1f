"""`cdc versions`: one record in PostgreSQL, Redis and the index, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdc.commands.asking import ask
from cdc.commands.configuration import configuration
from cdc.errors import CdcError, ConfigError

if TYPE_CHECKING:
    from cdc.config import Config

Values = Callable[[Sequence[str]], Mapping[str, str]]


def versions(
    context: typer.Context,
    key: Annotated[list[str], typer.Argument(help="The key's value; column=value … for a key of several columns.")],
    table: Annotated[str | None, typer.Option(help="schema.table; else the index's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Prints JSON.")] = False,
) -> None:
    """Shows a record's versions everywhere, and which store is behind; exit code 1 when one is."""
    config = configuration(context)
    found = ask(config, versions_of(config, lambda names: _values(key, names), table or config.faiss.table))
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        _show(found)
    raise typer.Exit(0 if all(store["state"] in ("in step", "not kept") for store in found["stores"].values()) else 1)


async def versions_of(config: Config, values: Values, table: str) -> dict[str, Any]:
    """The record in PostgreSQL and in each store; `values` gives the key's, by the names of its columns. Raises
    ConfigError and PreconditionError for what is asked wrongly, ConnectError without PostgreSQL."""
    from cdc.commands.contents import row_vector
    from cdc.commands.verify import selected
    from cdc.source.table_rows import TableRows

    [(schema, name)] = selected(config, table)
    rows = TableRows(config, schema, name, 0)
    try:
        wanted = rows.key_of(values(rows.key_names))
        row = (await rows.look([wanted]))[0]
        source = {
            "exists": row is not None,
            "vector": row_vector(row, config.table(schema, name).version_column) if row else None,
            "xmin": rows.writer_of(wanted),
        }
    finally:
        rows.close()
    stores = {
        "redis": await _store(_redis, config, (schema, name), wanted, row),
        "faiss": await _store(_faiss, config, (schema, name), wanted, row),
    }
    return {"table": table, "key": json.loads(wanted), "postgres": source, "stores": stores}


def _values(key: list[str], names: Sequence[str]) -> dict[str, str]:
    if len(names) == 1 and len(key) == 1:
        return {names[0]: key[0].removeprefix(f"{names[0]}=")}
    pairs = [part.partition("=") for part in key]
    if any(not equals for _name, equals, _value in pairs):
        raise ConfigError(
            f"the key of this table is {', '.join(names)}", hint="give " + " ".join(f"{name}=…" for name in names)
        )
    return {name: value for name, _equals, value in pairs}


async def _store(look: Any, config: Config, table: tuple[str, str], key: bytes, row: bytes | None) -> dict[str, Any]:
    """A store that cannot be asked is down, with its reason."""
    try:
        found: dict[str, Any] = await look(config, table, key, row)
    except CdcError as error:
        return {"state": "down", "reason": str(error)}
    return found


async def _redis(config: Config, table: tuple[str, str], key: bytes, row: bytes | None) -> dict[str, Any]:
    from cdc.commands.contents import RedisContent
    from consumers.redis import RedisStore, keys_for

    store = RedisStore(config)
    try:
        version = (await store.versions(*table, [key]))[0]
        content = RedisContent(config, *table, store)
        same = row is not None and (await content.matches([(key, row)]))[0]
    finally:
        await store.close()
    return {**_judged(version, row, same), "redis_key": keys_for(config, *table, key)}


async def _faiss(config: Config, table: tuple[str, str], key: bytes, row: bytes | None) -> dict[str, Any]:
    from cdc.commands.index_client import RemoteIndex
    from cdc.commands.index_content import IndexContent

    if ".".join(table) != config.faiss.table:
        return {"state": "not kept"}
    async with RemoteIndex(config) as index:
        version = (await index.versions(*table, [key]))[0]
        content = IndexContent(config, *table, index)
        same = row is not None and (await content.matches([(key, row)]))[0]
    return _judged(version, row, same)


def _judged(version: Any, row: bytes | None, same: bool) -> dict[str, Any]:
    """`behind`: what it holds is not what PostgreSQL has now."""
    from cdc.position import decode_position
    from cdc.version import decode_vector

    held = version is not None and not version.deleted
    if row is None:
        state = "behind: not deleted yet" if held else "in step"
    elif not held:
        state = "behind: missing"
    else:
        state = "in step" if same else "behind: older content"
    told: dict[str, Any] = {"state": state, "exists": held}
    if version is not None:
        told["position"] = str(decode_position(version.position))
        told["vector"] = decode_vector(version.vector)
    return told


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    source = found["postgres"]
    view = Table(title=f"{found['table']} {json.dumps(found['key'], ensure_ascii=False)}")
    for column in ("", "record", "position", "version vector", ""):
        view.add_column(column)
    note = f"xmin {source['xmin']}" if source["xmin"] else ""
    view.add_row("postgres", _presence(source["exists"]), "", _vector(source["vector"]), note)
    for name, store in found["stores"].items():
        state = f"down: {store['reason']}" if store["state"] == "down" else store["state"]
        view.add_row(
            name, _presence(store.get("exists")), store.get("position", ""), _vector(store.get("vector")), state
        )
    Console(highlight=False).print(view)


def _presence(exists: bool | None) -> str:
    return {True: "there", False: "not there", None: "?"}[exists]


def _vector(vector: dict[str, int] | None) -> str:
    return "" if vector is None else ", ".join(f"{origin}: {counter}" for origin, counter in vector.items())
