"""Where the processes are found: on this machine unless the configuration names an address."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdc.config import Config, Gateway, Index

PROCESSES = ("reader", "redis", "faiss", "gateway")
_CONNECTABLE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # one can listen on these, not connect to them


def gateway_address(config: Config) -> str:
    """host:port of the gateway, which is for everybody."""
    return _named(config.gateway)


def index_address(config: Config) -> str:
    """host:port where the FAISS consumer answers our own processes."""
    return _named(config.index)


def _named(listening: Gateway | Index) -> str:
    return listening.address or f"{_CONNECTABLE.get(listening.host, listening.host)}:{listening.port}"


def metrics_address(config: Config, process: str) -> str:
    """host:port of a process's /metrics; `process` is one of PROCESSES."""
    metrics = config.metrics
    named: str | None = getattr(metrics, f"{process}_address")
    return named or f"{_CONNECTABLE.get(metrics.host, metrics.host)}:{getattr(metrics, f'{process}_port')}"
