"""How the demo is told: numbered steps, one live line of counts, a summary. To stdout, or to stderr beside JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cdc.demo.observer import Look
from cdc.demo.summary import Summary, Times

TITLES = {"postgresql": "PostgreSQL", "kafka": "Kafka", "redis": "Redis", "faiss": "FAISS"}
REFRESH_SECONDS = 0.2  # as fast as a person reads numbers
INDENT = "   "


class Screen:
    """`console` is rich's; where it is no terminal, live lines are printed once, when they are settled."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._step = 0

    def step(self, title: str) -> None:
        """A heading."""
        self._step += 1
        self.console.print(f"\n[bold cyan]{self._step}[/]  [bold]{title}[/]", highlight=False)

    def say(self, line: str) -> None:
        """One sentence, in rich's markup; never wrapped, so that commands can be copied."""
        self.console.print(f"{INDENT}{line}", highlight=False, soft_wrap=True)

    def quote(self, text: str) -> None:
        """A text of others: as it is, one line at most."""
        line = Text(INDENT + " ".join(text.split()), style="italic")
        self.console.print(line, no_wrap=True, overflow="ellipsis")

    def servers(self, summary: Summary) -> None:
        """Which programs serve."""
        for name, title in (("postgres", "PostgreSQL"), ("kafka", "Kafka"), ("redis", "Redis")):
            self.say(f"{title:11} [dim]{escape(summary.servers[name].removeprefix(f'{title} '))}[/]")
        self.say(f"ready in {summary.start_seconds} s")

    @asynccontextmanager
    async def watching(self, look: Callable[[], Awaitable[Look]]) -> AsyncIterator[None]:
        """Counts and ages, refreshed until the block ends; then once more, settled."""
        with Live(console=self.console, auto_refresh=False, transient=True) as live:
            task = asyncio.create_task(self._refresh(live, look))
            try:
                yield
            finally:
                task.cancel()
                await asyncio.wait({task})
        if not task.cancelled():
            task.result()  # raises what ended it
        self.console.print(_counts(await look()))

    async def _refresh(self, live: Live, look: Callable[[], Awaitable[Look]]) -> None:
        while self.console.is_terminal:
            live.update(_counts(await look()), refresh=True)
            await asyncio.sleep(REFRESH_SECONDS)

    def fail(self, message: str, hint: str, logs: Path | None) -> None:
        """A step failed."""
        kept = f"\n{INDENT}the logs are in {logs}" if logs else ""
        self.console.print(f"{INDENT}{message}{f' → {hint}' if hint else ''}{kept}", style="red", markup=False)

    def summary(self, summary: Summary) -> None:
        """The last word."""
        table = Table(box=None, show_header=True, header_style="bold", padding=(0, 3, 0, 0))
        for title in ("", "rows", "differences", "commit → readable  p50", "p99"):
            table.add_column(title, justify="left" if not title else "right")
        table.add_row("PostgreSQL", _number(summary.rows.get("postgresql")), "", "", "")
        for store in ("redis", "faiss"):
            times, differences = summary.applied_ms.get(store), summary.differences.get(store)
            colour = "green" if differences == 0 else "red"
            cells = (_ms(times, "p50"), _ms(times, "p99"))
            table.add_row(
                TITLES[store], _number(summary.rows.get(store)), f"[{colour}]{_number(differences)}[/]", *cells
            )
        self.console.print()
        self.console.print(table)
        self.console.print(f"[dim]{_figures(summary)}[/]", highlight=False)
        self.console.print(_verdict(summary))
        self.console.print(f"[dim]{summary.seconds:.0f} s, seed {summary.seed}[/]", highlight=False)


def _counts(look: Look) -> Table:
    table = Table(box=None, padding=(0, 4, 0, 0), header_style="dim")
    table.add_column("  ")
    for place in look.rows:
        age = look.ages.get(place)
        fresh = f" [{'green' if age < 5 else 'red'}]{age:.1f} s old[/]" if age is not None else ""
        table.add_column(f"{TITLES[place]}{fresh}", justify="left", min_width=10)
    table.add_row("", *(_number(rows) for rows in look.rows.values()))
    return table


def _verdict(summary: Summary) -> str:
    if summary.equal:
        return "[bold green]All stores equal PostgreSQL, key by key.[/]"
    what = "The demo did not come to its end." if summary.error else "The stores differ from PostgreSQL."
    return f"[bold red]{what}[/]"


def _figures(summary: Summary) -> str:
    search = summary.search_ms
    figures = [
        f"sentence found {summary.found_after_ms:.0f} ms after its commit" if summary.found_after_ms else "",
        f"search {search.p50:.1f} ms at p50, {search.p99:.1f} ms at p99" if search else "",
        f"rebuild {summary.rebuild['records_per_second']:,} records/s" if summary.rebuild else "",
        f"killed consumer back after {summary.killed['caught_up_seconds']:.1f} s" if summary.killed else "",
    ]
    return " · ".join(filter(None, figures))


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _ms(times: Times | None, name: str) -> str:
    return f"{getattr(times, name):.1f} ms" if times else "?"
