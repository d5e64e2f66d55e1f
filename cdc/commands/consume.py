"""`cdc consume STORE`: Kafka → a store, until SIGTERM or Ctrl-C. The index's also answers our other processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from cdc.commands.configuration import configuration

if TYPE_CHECKING:
    from cdc.config import Config

app = typer.Typer(help="Keeps a store in step with the topics.", no_args_is_help=True)


@app.command("redis")
def consume_redis(context: typer.Context) -> None:
    """Keeps working memory in Redis."""
    import uvloop

    config = _begin(context, "redis")
    uvloop.run(_redis(config))


@app.command("faiss")
def consume_faiss(context: typer.Context) -> None:
    """Keeps the FAISS index and serves it to the gateway."""
    import uvloop

    config = _begin(context, "faiss")
    uvloop.run(_faiss(config))


def _begin(context: typer.Context, store: str) -> Config:
    from cdc import listening, log, metrics

    log.configure(f"consumer-{store}", verbose=context.obj.verbose)
    config = configuration(context)
    port = config.metrics.redis_port if store == "redis" else config.metrics.faiss_port
    port = metrics.serve(config.metrics.host, port)
    listening.announce("metrics are served", config.metrics.host, port)
    return config


async def _redis(config: Config) -> None:
    from consumers.redis import RedisStore
    from consumers.runtime import Runtime

    store = RedisStore(config)
    runtime = Runtime(
        config, store, exclusive=False, counts=store, tables=config.postgres.tables,
        check_seconds=config.redis.check_seconds,
    )  # fmt: skip
    await runtime.serve()


async def _faiss(config: Config) -> None:
    from cdc import listening
    from cdc.commands.searching import parts
    from consumers.faiss import FaissStore
    from consumers.gateway.index import create_app
    from consumers.gateway.server import GatewayServer
    from consumers.runtime import Runtime

    store = FaissStore(config)
    runtime = Runtime(
        config, store, exclusive=True, counts=store, tables=(config.faiss.table,), poll_records=config.faiss.batch
    )
    app = create_app(parts(config, store, runtime))
    async with GatewayServer(app, config.index.host, config.index.port, "the index") as service:
        listening.announce("the index is served", config.index.host, service.port)
        await runtime.serve()
