"""`cdc top`: `cdc status` again and again, with rates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cdc.commands.asking import ask
from cdc.commands.configuration import configuration

if TYPE_CHECKING:
    from cdc.commands.observation import Observation
    from cdc.config import Config

COUNT_SECONDS = 10.0  # counting walks over tables and stores
RATES = {
    "reader": (("cdc_reader_records_total", "records/s"), ("cdc_reader_stream_bytes_total", "B/s")),
    "redis": (("cdc_store_records_total", "records/s"), ("cdc_store_dead_letters_total", "dead letters/s")),
    "faiss": (("cdc_store_records_total", "records/s"), ("cdc_search_seconds_count", "searches/s")),
}


def top(
    context: typer.Context,
    seconds: Annotated[float, typer.Option(min=0.2, help="Between two looks.")] = 1.0,
) -> None:
    """Shows the same live, with rates, until Ctrl-C."""
    from cdc.commands.status import document, gateway_expected, last_words

    config, gateway = configuration(context), gateway_expected(context)
    ask(config, _watch(config, seconds, lambda seen: document(seen, last_words(context), gateway)))


async def _watch(config: Config, seconds: float, shown: Callable[[Observation], dict[str, Any]]) -> None:
    from rich.live import Live

    from cdc.commands.observation import observe
    from cdc.commands.status import render

    before, counted = await observe(config), 0.0
    rows = before
    with Live(render(shown(before), {}), screen=True, auto_refresh=False) as live:
        while True:
            await asyncio.sleep(seconds)
            count = before.time - counted > COUNT_SECONDS
            seen = await observe(config, count=count)
            if count:
                counted, rows = seen.time, seen
            else:
                _keep_rows(seen, rows)
            live.update(render(shown(seen), _rates(before, seen)), refresh=True)
            before = seen


def _keep_rows(seen: Observation, counted: Observation) -> None:
    """The newest counts, for what is still up."""
    if seen.source.value is not None and counted.source.value is not None:
        seen.source.value.rows = counted.source.value.rows
    for name, part in seen.stores.items():
        earlier = counted.stores[name].value
        if part.value is not None and earlier is not None:
            part.value.rows = earlier.rows


def _rates(before: Observation, now: Observation) -> dict[str, str]:
    from cdc.commands.exposition import total

    passed = now.time - before.time
    rates: dict[str, str] = {}
    for name, wanted in RATES.items():
        earlier, later = before.processes[name].value, now.processes[name].value
        if earlier is None or later is None:
            continue
        shown = []
        for metric, unit in wanted:
            grown = (total(later, metric) or 0.0) - (total(earlier, metric) or 0.0)
            shown.append(f"{max(0.0, grown) / passed:,.0f} {unit}")  # below 0: the process started anew
        rates[name] = ", ".join(shown)
    return rates
