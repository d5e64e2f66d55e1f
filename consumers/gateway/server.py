"""Serving an application in the event loop of whoever runs it; signals stay with the caller."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from cdc.errors import ConfigError

SHUTDOWN_SECONDS = 3  # running requests get that long


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The caller handles them."""
        yield


class GatewayServer:
    """`async with GatewayServer(app, host, port, "the gateway") as server: server.port`; port 0 takes a free one.

    Raises ConfigError, which names what cannot listen."""

    def __init__(self, app: FastAPI, host: str, port: int, what: str = "the gateway") -> None:
        self._socket = _bound(host, port, what)
        self.port: int = self._socket.getsockname()[1]
        self._server = _Server(
            uvicorn.Config(
                app,
                log_config=None,  # as all other libraries' (cdc.log), which shows no values
                log_level="warning",
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> GatewayServer:
        self._serving = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
        self._socket.close()


def _bound(host: str, port: int, what: str) -> socket.socket:
    """Raises ConfigError when the address is taken or not ours."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(
            f"{what} cannot listen on {host}:{port}: {error.strerror}", hint="choose a free port, or 0"
        ) from error
