"""`cdc reader`: PostgreSQL → Kafka, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from cdc.commands.configuration import configuration

if TYPE_CHECKING:
    from cdc.config import Config


def reader(context: typer.Context) -> None:
    """Streams PostgreSQL's changes into Kafka."""
    import uvloop

    from cdc import listening, log, metrics
    from cdc.allocator import keep_freed

    keep_freed()
    log.configure("reader", verbose=context.obj.verbose)
    config = configuration(context)
    port = metrics.serve(config.metrics.host, config.metrics.reader_port)
    listening.announce("metrics are served", config.metrics.host, port)
    uvloop.run(_read(config))


async def _read(config: Config) -> None:
    from cdc.commands.snapshot_bar import SnapshotBar
    from cdc.commands.stopping import on_signal
    from cdc.garbage import collect_rarely
    from cdc.reader import Reader

    collect_rarely()
    bar = SnapshotBar() if sys.stderr.isatty() else None
    reader = Reader(config, on_snapshot=bar)
    try:
        with on_signal(reader.stop):
            await reader.run()
    finally:
        if bar is not None:
            bar.close()
