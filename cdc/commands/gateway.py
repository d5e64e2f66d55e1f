"""`cdc gateway`: what clients ask, over HTTP, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import typer

from cdc.commands.configuration import configuration
from cdc.ending import end

if TYPE_CHECKING:
    from cdc.config import Config

SIGNAL_SECONDS = 2.0  # one small query; whoever inserts a row waits that long


def gateway(context: typer.Context) -> None:
    """Serves health, counts, freshness, search and records of the whole system."""
    import uvloop

    from cdc import listening, log, metrics

    log.configure("gateway", verbose=context.obj.verbose)
    config = configuration(context)
    port = metrics.serve(config.metrics.host, config.metrics.gateway_port)
    listening.announce("metrics are served", config.metrics.host, port)
    uvloop.run(_serve(config))


async def _serve(config: Config) -> None:
    from cdc import listening
    from cdc.commands.gateway_board import ProcessBoard
    from cdc.commands.gateway_jobs import Desk
    from cdc.commands.gateway_letters import ROUND_SECONDS as LETTER_SECONDS
    from cdc.commands.gateway_letters import Mirror
    from cdc.commands.gateway_rounds import rounds
    from cdc.commands.gateway_schedule import ROUND_SECONDS as SCHEDULE_SECONDS
    from cdc.commands.gateway_schedule import Timetable
    from cdc.commands.gateway_source import PostgresSource
    from cdc.commands.gateway_stores import IndexView, RedisView
    from cdc.commands.gateway_verifies import ROUND_SECONDS as VERIFIES_SECONDS
    from cdc.commands.gateway_verifies import Verifies
    from cdc.commands.gateway_watermarks import ROUND_SECONDS, Recorder
    from cdc.commands.index_client import RemoteIndex
    from cdc.commands.stopping import on_signal
    from cdc.wishes import Wishes
    from consumers.gateway.admin import Gate
    from consumers.gateway.app import create_app
    from consumers.gateway.events import events
    from consumers.gateway.feed import Feed
    from consumers.gateway.history import SAMPLE_SECONDS, History
    from consumers.gateway.keys import AdminKey, Rate
    from consumers.gateway.overview import Scene, overview
    from consumers.gateway.page import page
    from consumers.gateway.parts import Parts
    from consumers.gateway.schedules import schedules
    from consumers.gateway.server import GatewayServer
    from consumers.gateway.stats import Statistics
    from consumers.gateway.timeline import Timeline
    from consumers.redis import RedisStore

    store = RedisStore(config)
    source = PostgresSource(config, store)
    stop = asyncio.Event()
    async with RemoteIndex(config) as remote:
        memory, index, timeline = RedisView(config, store), IndexView(config, remote), Timeline(config)
        parts = Parts(
            table=config.faiss.table,
            objective_seconds=config.freshness.objective_seconds,
            stats_seconds=config.gateway.stats_seconds,
            source=source,
            memory=memory,
            stores=(memory, index),
            index=index,
            timeline=timeline,
            wishes=Wishes(config.kafka),
        )
        statistics = Statistics(parts)
        desk, settings = Desk(config, statistics), config.gateway
        key = settings.admin_key.get_secret_value() if settings.admin_key else None
        app = create_app(parts, statistics, desk, Gate(desk, AdminKey(key), Rate(settings.admin_per_minute)))
        timetable = Timetable(config, desk, parts, statistics)
        app.include_router(schedules(timetable))
        feed = Feed(config, timeline)
        app.include_router(events(config, feed))
        board, text = ProcessBoard(config), config.table(*parts.table.split(".", 1)).text
        history = History(parts, statistics, board)
        app.include_router(overview(Scene(parts, statistics, history, desk, board, text)))
        app.include_router(page())
        try:
            async with GatewayServer(app, config.gateway.host, config.gateway.port) as server, feed:
                listening.announce("clients are answered", config.gateway.host, server.port)
                with on_signal(stop.set):
                    await _until(
                        stop,
                        timeline.listen(),
                        parts.wishes.listen(),
                        rounds("recording watermarks", Recorder(config, parts, statistics).round, ROUND_SECONDS),
                        rounds("mirroring dead letters", Mirror(config).round, LETTER_SECONDS),
                        rounds("measuring verifies", Verifies(config).round, VERIFIES_SECONDS),
                        rounds("taking signals", desk.take_signals, SIGNAL_SECONDS),
                        rounds("keeping schedules", timetable.round, SCHEDULE_SECONDS),
                        rounds("counting", statistics.get, settings.count_seconds),
                        rounds("looking how fresh the stores are", history.look, SAMPLE_SECONDS),
                    )
        finally:
            timetable.close()
            await desk.close()
            source.close()
            await store.close()


async def _until(stop: asyncio.Event, *beside: Coroutine[Any, Any, None]) -> None:
    """What runs beside runs as long; raises what one of them raised."""
    stopping = asyncio.ensure_future(stop.wait())
    tasks = [asyncio.ensure_future(work) for work in beside]
    await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    await end(stopping, *tasks)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
