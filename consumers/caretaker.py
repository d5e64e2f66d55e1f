"""What a consumer looks at every few seconds, busy or idle: does the store still hold what it was given, how much is
it, and are the topics still the ones it was read from?"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from aiokafka.errors import KafkaError

from cdc import log
from cdc.errors import ConnectError, StoreLost
from consumers.gauges import Gauges
from consumers.insistence import Insistence
from consumers.partitions import Partitions
from consumers.store import Store
from consumers.topics import TableTopics

LOG = log.get(__name__)


class Caretaker:
    """Of one store. `seconds` between two looks; counting and asking go on beside the loop, since they take time."""

    def __init__(
        self,
        store: Store,
        topics: TableTopics,
        partitions: Partitions,
        gauges: Gauges,
        insist: Insistence,
        seconds: float,
    ) -> None:
        self._store = store
        self._topics = topics
        self._partitions = partitions
        self._gauges = gauges
        self._insist = insist
        self._seconds = seconds
        self._next = 0.0  # loop time
        self._beside: dict[str, asyncio.Future[None]] = {}

    async def look(self, *, whole: bool, counted: bool) -> None:
        """When it is time. `whole`: the store holds all that it once held; `counted`: its rows are no passing state of
        a store that is being filled. Raises StoreLost and what nobody expects."""
        clock = asyncio.get_running_loop().time()
        if clock < self._next:
            return
        self._next = clock + self._seconds
        await self._insist("checking the store", self._store.check)
        self._gauges.up(whole)
        if not self._partitions.resting:
            self._gauges.lag(self._partitions.lag())
        tables = sorted({self._topics.split(topic) for topic, _partition in self._partitions.reached})
        self._start("topics", self._ask)
        self._gauges.show(counted)
        self._start("rows", lambda: self._count(tables))

    def running(self) -> Sequence[asyncio.Future[None]]:
        """To be cancelled at the end."""
        return list(self._beside.values())

    def _start(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Unless the last one is still under way; raises what that one raised."""
        before = self._beside.get(name)
        if before is None or before.done():
            if before is not None:
                before.result()
            self._beside[name] = asyncio.ensure_future(work())

    async def _ask(self) -> None:
        """Kafka may be away, which the poll reports. Partitions whose log is another now begin anew."""
        try:
            logs = await self._partitions.logs()
            if self._partitions.resting:  # nothing is fetched, so that no fetch tells the ends
                self._gauges.lag(await self._partitions.lag_now())
        except KafkaError as error:
            LOG.debug("the topics' ids cannot be asked for now", store=self._store.name, reason=repr(error))
            return
        if self._partitions.placed and any(self._store.logs.get(place) != log for place, log in logs.items()):
            self._partitions.displace()

    async def _count(self, tables: Sequence[tuple[str, str]]) -> None:
        """What fails here, the store's check reports."""
        try:
            await self._gauges.count(tables)
        except (ConnectError, StoreLost) as error:
            LOG.warning("rows not counted this time", store=self._store.name, reason=str(error))
