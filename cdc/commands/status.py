"""`cdc status`: everything at one glance, asked of the servers and stores themselves."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdc.commands import status_operation
from cdc.commands.asking import ask
from cdc.commands.configuration import config_path, configuration

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cdc.commands.exposition import Samples
    from cdc.commands.observation import Observation
    from cdc.wishes import Wish

BLOCKED = "cdc_reader_blocked"
TITLES = {"reader": "reader", "redis": "consumer redis", "faiss": "consumer faiss", "gateway": "gateway"}

LOGS = {"reader": "reader", "redis": "consumer-redis", "faiss": "consumer-faiss", "gateway": "gateway"}


def status(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Prints JSON.")] = False,
) -> None:
    """Shows watermarks, lag and counts of every store; exit code 1 when something is down."""
    from cdc.commands.observation import observe

    config = configuration(context)
    seen = ask(config, observe(config))
    found = document(seen, last_words(context), gateway_expected(context))
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        from rich.console import Console

        Console(highlight=False).print(render(found))
    raise typer.Exit(0 if found["up"] else 1)


def gateway_expected(context: typer.Context) -> bool:
    """Somebody started it here by `cdc up`, or the configuration says where it is."""
    config, path = configuration(context), config_path(context)
    started = path is not None and (path.absolute().parent / "logs" / f"{LOGS['gateway']}.log").exists()
    return started or bool(config.gateway.address or config.metrics.gateway_address)


def last_words(context: typer.Context) -> dict[str, str]:
    """The sentence that each process of `cdc up` left when it ended by an error."""
    path = config_path(context)
    found: dict[str, str] = {}
    for name, log in LOGS.items():
        file = path.absolute().parent / "logs" / f"{log}.log" if path else None
        if file is None or not file.exists():
            continue
        lines = file.read_text(errors="replace").splitlines()
        if lines and lines[-1].startswith("cdc: "):
            found[name] = lines[-1].removeprefix("cdc: ")
    return found


def document(seen: Observation, words: dict[str, str], gateway: bool = True) -> dict[str, Any]:
    """For scripts; what could not be asked is null, with a reason. Without `gateway` one that does not run is no
    fault."""
    stores = {name: _store(seen, name) for name in seen.stores}
    processes = {name: _process(seen, name, words) for name in seen.processes}
    if not (gateway or processes["gateway"]["up"]):
        processes["gateway"]["optional"] = True
    parts = [_source(seen), _reader(seen), *stores.values(), *processes.values()]
    return {
        "up": all(part["up"] or part.get("optional") for part in parts),
        "time": seen.time,
        "source": parts[0],
        "progress": parts[1],
        "stores": stores,
        "processes": processes,
        "schedules": status_operation.schedules(seen),
        "schedules_reason": seen.schedules.reason or None,
        "paused": {name: _pause(wish) for name, wish in (seen.wishes.value or {}).items() if wish.paused},
    }


def _pause(wish: Wish) -> dict[str, Any]:
    return {"by": wish.by, "since": wish.at, "why": wish.why}


def _source(seen: Observation) -> dict[str, Any]:
    from cdc.position import format_lsn

    state = seen.source.value
    if state is None:
        return {"up": False, "reason": seen.source.reason}
    slot = state.slot
    return {
        "up": True,
        "lsn": format_lsn(state.lsn),
        "rows": state.rows,
        "slot": None
        if slot is None
        else {
            "name": slot.name,
            "plugin": slot.plugin,
            "active": slot.active,
            "lost": slot.lost,
            "confirmed_lsn": format_lsn(slot.confirmed_lsn),
            "retained_bytes": slot.retained_bytes,
            "safe_bytes": slot.safe_bytes,
        },
    }


def _reader(seen: Observation) -> dict[str, Any]:
    from cdc.position import format_lsn

    progress = seen.progress.value
    if progress is None:
        return {"up": False, "reason": seen.progress.reason}
    return {
        "up": True,
        "position": str(progress.position),
        "epoch": progress.epoch,
        "lsn": format_lsn(progress.end_lsn),
        "lag_bytes": _behind(seen, progress.end_lsn),
        "snapshots": {
            table: {"done": state.done, "rows": state.rows} for table, state in sorted(progress.snapshots.items())
        },
    }


def _store(seen: Observation, name: str) -> dict[str, Any]:
    from cdc.position import format_lsn

    part = seen.stores[name]
    if part.value is None:
        return {"up": False, "reason": part.reason}
    state = part.value
    return {
        "up": True,
        "rows": state.rows,
        "watermark": None if state.watermark is None else format_lsn(state.watermark),
        "fresh_until": state.at,
        "reason": state.reason or None,
        "lag_seconds": None if state.at is None else max(0.0, round(_now(seen) - state.at, 3)),
        "lag_bytes": None if state.watermark is None else _behind(seen, state.watermark),
        "offset_lag": state.offset_lag,
        "parked_keys": _parked(seen, name),
    }


def _parked(seen: Observation, name: str) -> int | None:
    """Open dead letters, as the store's consumer counts them in their topic; None while nobody does."""
    from cdc.commands.exposition import total

    part = seen.processes.get(name)
    found = total(part.value, "cdc_store_open_letters", store=name) if part is not None and part.value else None
    return None if found is None else int(found)


def _now(seen: Observation) -> float:
    """By the clock that commits are stamped with, where it can be asked."""
    return seen.source.value.time if seen.source.value is not None else seen.time


def _process(seen: Observation, name: str, words: dict[str, str]) -> dict[str, Any]:
    part = seen.processes[name]
    blocked = _blocked(part.value or {})
    if blocked:
        reason = f"waits for a person: {blocked}; see its log, and docs/runbooks.md#reader-blocked"
        return {"up": False, "reason": reason, "last_words": words.get(name)}
    if part.value is None:
        return {"up": False, "reason": part.reason, "last_words": words.get(name)}
    return {"up": True, **(status_operation.judgement(part.value) if name == "gateway" else {})}


def _blocked(samples: Samples) -> str:
    """Why the reader does not go on."""
    found = [dict(labels)["reason"] for (name, labels), value in samples.items() if name == BLOCKED and value]
    return ", ".join(found)


def _behind(seen: Observation, lsn: int) -> int | None:
    """Bytes of WAL the source is ahead; None when the source cannot be asked."""
    return None if seen.source.value is None else max(0, seen.source.value.lsn - lsn)


def render(found: dict[str, Any], rates: dict[str, str] | None = None) -> RenderableType:
    """Three tables: stores beside the source, processes, schedules."""
    from rich.console import Group
    from rich.table import Table

    stores = Table(title="source and stores")
    for column in ("", "state", "lag", "behind", "offsets behind", "parked keys", "watermark", "rows"):
        stores.add_column(column)
    source = found["source"]
    slot = _slot(source)
    stores.add_row("postgres", _state(source, slot), "", "", "", "", source.get("lsn", ""), _rows(source))
    progress = found["progress"]
    stores.add_row("kafka", _state(progress, _snapshots(progress)), "", size(progress.get("lag_bytes")), "", "",
                   progress.get("lsn", ""), "")  # fmt: skip
    for name, store in found["stores"].items():
        stores.add_row(name, _state(store), _seconds(store.get("lag_seconds")), size(store.get("lag_bytes")),
                       _number(store.get("offset_lag")), _number(store.get("parked_keys")),
                       store.get("watermark") or "", _rows(store))  # fmt: skip
    processes = Table(title="processes")
    for column in ("", "state", *(("rates",) if rates is not None else ())):
        processes.add_column(column)
    for name, process in found["processes"].items():
        extra = (rates.get(name, ""),) if rates is not None else ()
        processes.add_row(TITLES[name], _state(process, _note(found, name, process)), *extra)
    schedules = status_operation.table(found["schedules"], found["schedules_reason"] or "")
    return Group(stores, processes, schedules)


def _note(found: dict[str, Any], name: str, process: dict[str, Any]) -> str:
    """That it stands still, what it said when it ended, or what it makes of counts."""
    wish = found.get("paused", {}).get(name)
    since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(wish["since"])) if wish else ""
    why = f" ({wish['why']})" if wish and wish["why"] else ""
    return (
        f"paused by {wish['by']} since {since}{why}"
        if wish
        else process.get("last_words") or status_operation.words(process)
    )


def _state(part: dict[str, Any], note: str = "") -> str:
    from rich.markup import escape

    if part.get("optional"):
        return f"[yellow]not running[/]: {escape(part['reason'])}"
    if part["up"]:
        return f"[green]up[/]{f', {escape(note)}' if note else ''}"
    return f"[red]down[/]: {escape(part['reason'])}{f' ({escape(note)})' if note else ''}"


def _slot(source: dict[str, Any]) -> str:
    if not source["up"]:
        return ""
    slot = source["slot"]
    if slot is None:
        return "no slot yet"
    state = "lost" if slot["lost"] else "active" if slot["active"] else "nobody reads it"
    return f"slot {slot['name']}: {state}, holds {size(slot['retained_bytes'])} of WAL"


def _snapshots(progress: dict[str, Any]) -> str:
    running = {name: state for name, state in progress.get("snapshots", {}).items() if not state["done"]}
    return ", ".join(f"snapshot of {name}: {state['rows']} rows" for name, state in running.items())


def _rows(part: dict[str, Any]) -> str:
    return "\n".join(f"{table} {rows:,}" for table, rows in (part.get("rows") or {}).items())


def _seconds(value: float | None) -> str:
    return "?" if value is None else f"{value:.1f} s"


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def size(value: int | None) -> str:
    """Bytes for a person."""
    if value is None:
        return "?"
    number = float(value)
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:,.1f} GB"
