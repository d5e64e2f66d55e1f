"""Reader, consumers and gateway as child processes of `cdc up`: started, watched, started again, stopped in order.

They end with us, even when we are killed; each keeps its log beside the servers' (see `cdc.embedded`).
"""

from __future__ import annotations

import http.client
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from cdc.config import Config
from cdc.embedded import Server
from cdc.embedded.folder import Folder
from cdc.errors import PreconditionError

ANSWER_SECONDS = 2.0  # a process that answers needs milliseconds
SENTENCE = "cdc: "  # how the command begins what it tells a person (cdc/cli.py)
FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 30.0  # between two starts of a process that keeps ending
STEADY_SECONDS = 60.0  # after which an end counts as the first again


class Process(Server):
    """`cdc ARGUMENTS` with one configuration; it has started when it serves `path` on `address`."""

    arguments: ClassVar[Sequence[str]]
    path: ClassVar[str] = "/metrics"
    stop_signals = ((signal.SIGTERM, 60.0),)  # a last snapshot of a large index takes its time

    def __init__(self, folder: Folder, config: Path, address: tuple[str, int]) -> None:
        super().__init__(folder, {})
        self._config = config
        self._address = address
        self.delay = 0.0  # before the next start; grows while it keeps ending
        self.due = 0.0  # when that is; monotonic seconds
        self.started = 0.0

    @property
    def provider(self) -> str:
        return sys.executable

    def prepare(self) -> None:
        """Nothing: it makes what it needs."""

    def command(self) -> list[str]:
        return [sys.executable, "-m", "cdc.cli", "--config", str(self._config), *self.arguments]

    def answers(self) -> bool:
        connection = http.client.HTTPConnection(*self._address, timeout=ANSWER_SECONDS)
        try:
            connection.request("GET", self.path)
            connection.getresponse().read()
        except OSError:
            return False
        finally:
            connection.close()
        return True

    def start(self) -> None:
        """Raises PreconditionError with the log's end."""
        self.started = time.monotonic()
        super().start()

    def last_words(self) -> str:
        """Why it ended: the sentence it left, else its exit code or the signal that killed it."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        if lines and lines[-1].startswith(SENTENCE):
            return lines[-1].removeprefix(SENTENCE)
        code = self._process.returncode if self._process is not None else None
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}, see {self.log}"

    def schedule(self) -> None:
        """Decides when an ended process starts again."""
        steady = time.monotonic() - self.started > STEADY_SECONDS
        self.delay = FIRST_DELAY_SECONDS if steady or not self.delay else min(2 * self.delay, LONGEST_DELAY_SECONDS)
        self.due = time.monotonic() + self.delay


class ReaderProcess(Process):
    """PostgreSQL → Kafka."""

    name = "reader"
    title = "the reader"
    arguments = ("reader",)


class RedisProcess(Process):
    """Kafka → Redis."""

    name = "consumer-redis"
    title = "the Redis consumer"
    arguments = ("consume", "redis")


class FaissProcess(Process):
    """Kafka → FAISS, and its service, which listens last."""

    name = "consumer-faiss"
    title = "the FAISS consumer"
    arguments = ("consume", "faiss")
    path = "/health"


class GatewayProcess(Process):
    """What clients ask. It answers at once, and says of itself what it can reach."""

    name = "gateway"
    title = "the gateway"
    arguments = ("gateway",)
    path = "/health"


class Pipeline:
    """Use as a context manager around `watch`. `report` takes sentences for a person."""

    def __init__(self, folder: Folder, path: Path, config: Config, report: Callable[[str], None]) -> None:
        host = config.metrics.host
        self.reader = ReaderProcess(folder, path, (host, config.metrics.reader_port))
        self.consumers = (
            RedisProcess(folder, path, (host, config.metrics.redis_port)),
            FaissProcess(folder, path, (config.index.host, config.index.port)),
        )
        self.gateway = GatewayProcess(folder, path, (config.gateway.host, config.gateway.port))
        self._report = report

    @property
    def processes(self) -> Sequence[Process]:
        """In the order in which data passes them."""
        return self.reader, *self.consumers, self.gateway

    def __enter__(self) -> Pipeline:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def start(self) -> None:
        """All at once: each waits for what it needs. Raises PreconditionError."""
        pool = ThreadPoolExecutor(len(self.processes))
        try:
            for start in [pool.submit(process.start) for process in self.processes]:
                start.result()
        finally:
            for process in self.processes:
                process.abandon()
            pool.shutdown()

    def stop(self) -> None:
        """The gateway, the consumers, then the reader: what it has written by then is not lost, only applied later."""
        self.gateway.stop()
        with ThreadPoolExecutor(len(self.consumers)) as pool:
            for stop in [pool.submit(consumer.stop) for consumer in self.consumers]:
                stop.result()
        self.reader.stop()

    def watch(self) -> None:
        """For ever: starts again what ended."""
        while True:
            self.tend()

    def tend(self) -> None:
        """Waits until something is to be done, and does it."""
        self._wait()
        for process in self.processes:
            if not process.running:
                self._revive(process)

    def _wait(self) -> None:
        """Until a process ends, or one that ended is due."""
        handles = [os.pidfd_open(process.pid) for process in self.processes if process.pid is not None]
        due = [process.due for process in self.processes if not process.running]
        try:
            select.select(handles, [], [], max(0.0, min(due) - time.monotonic()) if due else None)
        finally:
            for handle in handles:
                os.close(handle)

    def _revive(self, process: Process) -> None:
        if process.due <= process.started:  # it has just ended
            process.schedule()
            self._report(f"{process.title} ended: {process.last_words()}; starting it again in {process.delay:g} s")
        elif time.monotonic() >= process.due:
            try:
                process.start()
            except PreconditionError:
                return  # it ended while it started: told and scheduled at the next look
            self._report(f"{process.title} runs again")
