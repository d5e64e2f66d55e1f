"""Trying a step until it succeeds, for as long as the policy (`consumers.retry`) says to wait. While a batch is being
applied nothing more is fetched meanwhile, and a wait ends when its partitions are taken away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from aiokafka.errors import KafkaError

from cdc import log, metrics
from cdc.errors import ConnectError
from cdc.waiting import Waiting, reason_and_hint
from consumers.gauges import Gauges
from consumers.partitions import Partitions
from consumers.retry import Action, delays, policy_for

LOG = log.get(__name__)
T = TypeVar("T")


class Interrupted(Exception):
    """The partitions are taken away, or the process is to stop, while a step was being tried again."""


class Insistence:
    """Of one consumer. Set `stop` to end every wait."""

    def __init__(self, store: str, partitions: Partitions, gauges: Gauges) -> None:
        self._store = store
        self._partitions = partitions
        self._gauges = gauges
        self._applying = False
        self.stop = asyncio.Event()

    @contextmanager
    def applying(self) -> Iterator[None]:
        """Around what must not go on with partitions that are another's."""
        self._applying = True
        try:
            yield
        finally:
            self._applying = False

    async def __call__(self, doing: str, step: Callable[[], Awaitable[T]]) -> T:
        """The step's result. Raises what the policy does not wait for, and Interrupted."""
        attempts, waiting = delays(), Waiting()
        while True:
            try:
                done = await step()
            except Exception as error:
                policy = policy_for(error)
                if policy.action is not Action.WAIT:
                    raise
                metrics.STORE_RETRIES.labels(self._store, policy.reason).inc()
                if isinstance(error, ConnectError):
                    self._gauges.up(False)
                self._say(doing, waiting, error)
            else:
                if waiting.seconds:
                    LOG.info(f"{doing}: it works", store=self._store, seconds=waiting.seconds)
                return done
            await self.pause(next(attempts))

    def _say(self, doing: str, waiting: Waiting, error: Exception) -> None:
        """One line with the remedy, not one a try."""
        told = self._partitions.told(error) if isinstance(error, KafkaError) else reason_and_hint(error)
        if waiting.news(told["reason"]):
            LOG.warning(f"{doing}: trying again until it works", store=self._store, seconds=waiting.seconds, **told)

    async def pause(self, seconds: float) -> None:
        """Between two tries. Raises Interrupted when there is no point in another one."""
        applying = self._applying
        if applying:
            await self._partitions.hold()
        try:
            await asyncio.wait_for(self.stop.wait(), seconds)
        except TimeoutError:
            pass  # nobody wants us to stop
        if self.stop.is_set() or (applying and not self._partitions.placed):
            raise Interrupted
        if applying:
            self._partitions.go_on()
