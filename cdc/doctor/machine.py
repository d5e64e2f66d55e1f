"""This machine: the index's folder, its disk, and the ports our processes listen on."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from cdc.config import Config, Faiss
from cdc.doctor.finding import Finding, error, ok, warning
from cdc.kafka import batch
from cdc.listening import REMEDY, is_loopback
from cdc.source import runs

AREA = "machine"
ANSWER_SECONDS = 1.0
LEAST_BYTES = 256 << 20  # an index of 100,000 vectors of 384 dimensions, its snapshot, and air


def check(config: Config) -> Iterator[Finding]:
    """Raises nothing."""
    yield from _folder(config.faiss)
    yield _compiled()
    metrics = config.metrics
    yield from _port("the reader's metrics", metrics.host, metrics.reader_port)
    yield from _port("the Redis consumer's metrics", metrics.host, metrics.redis_port)
    yield from _port("the FAISS consumer's metrics", metrics.host, metrics.faiss_port)
    yield from _port("the gateway's metrics", metrics.host, metrics.gateway_port)
    yield from _port("the index's service", config.index.host, config.index.port)
    yield from _port("the gateway", config.gateway.host, config.gateway.port)


def _compiled() -> Finding:
    if batch.COMPILED and runs.COMPILED:
        return ok(AREA, "the hot path is compiled")
    return warning(
        AREA,
        "the hot path is not compiled: the reader needs twice the CPU time a row",
        "install a C compiler and Python's headers (gcc, python3-dev) and install this package again; unset "
        "CDC_PURE_PYTHON",
    )


def _folder(settings: Faiss) -> Iterator[Finding]:
    path = settings.path.absolute()
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        yield error(AREA, f"the index cannot be kept in {path}: {nearest} may not be written by this user",
                    f"chown {nearest}, or set faiss.path to another folder")  # fmt: skip
        return
    free, needed = shutil.disk_usage(nearest).free, max(LEAST_BYTES, 2 * _largest_snapshot(path))
    if free < needed:
        yield warning(
            AREA,
            f"{path} has {free >> 20} MiB left, the next snapshots need up to {needed >> 20}",
            "make room, lower faiss.keep_snapshots, or set faiss.path to another disk",
        )
    else:
        yield ok(AREA, f"the index's folder {path} can be written, {free >> 30} GiB are free")


def _largest_snapshot(path: Path) -> int:
    sizes = (file.stat().st_size for file in path.glob("gen-*/snapshot-*/index.faiss"))
    return max(sizes, default=0)


def _port(what: str, host: str, port: int) -> Iterator[Finding]:
    """Free, or already served by a process of ours; for others to reach or not."""
    if not is_loopback(host):
        yield warning(AREA, f"{what}: whoever reaches {host}:{port} is answered, unprotected", REMEDY)
    if port == 0:
        yield ok(AREA, f"{what}: any free port")
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as failed:
            yield _taken(what, host, port, failed)
            return
    yield ok(AREA, f"{what}: port {port} is free")


def _taken(what: str, host: str, port: int, failed: OSError) -> Finding:
    if _ours(host, port):
        return ok(AREA, f"{what}: served at {host}:{port}")
    return error(AREA, f"{what} cannot listen on {host}:{port}: {failed.strerror}", "choose a free port, or 0")


def _ours(host: str, port: int) -> bool:
    """Whether a process of ours answers there: /metrics of the processes, or the schema of a service."""
    for path, sign in (("/metrics", b"cdc_build_info"), ("/openapi.json", b"memory-cdc")):
        connection = http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)
        try:
            connection.request("GET", path)
            if sign in connection.getresponse().read():
                return True
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
    return False
