"""The Kafka side of a consumer: which partitions it owns, where it stands in each, and polling them.

Two ways of owning: a group shares the partitions between processes and moves them when one comes or goes; an
exclusive consumer takes all of them. Either way the start is what the store says it holds, never what the group
committed: offsets are committed for tools that draw lag, after the store has made them durable.

`placed` is False from the moment partitions are taken away until `place` has put every partition to the store's
offset; what was polled meanwhile is dropped, because `place` goes back to before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from math import inf

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)

from cdc import log
from cdc.config import Config
from cdc.errors import LoginError
from cdc.refusal import explain
from cdc.topic_ids import topic_ids
from consumers.batches import Message
from consumers.connection import disconnect
from consumers.seat import Seat
from consumers.store import Offsets, Partition
from consumers.topics import TableTopics, table_partitions

LOG = log.get(__name__)

MIB = 1 << 20
FETCH_BYTES = 32 * MIB  # one response; a larger record still comes, alone (KIP-74)
PARTITION_BYTES = 2 * MIB  # prefetched a partition: some 20,000 compressed records, and a bound on what is held undone
FETCH_WAIT_MS = 50  # a partition that just delivered joins the next request only: the longest it waits there
POLL_RECORDS = 10_000  # a poll: large enough to fill batches, small enough for a store to finish within a second
DISCOVERY_SECONDS = 5.0  # a table added later is found within that time
REDISCOVERY_SECONDS = 0.5  # and when a heartbeat already speaks of it
POLL_INTERVAL_MS = 300_000  # 5 min: a member that does not poll that long is taken for dead
HANG_SECONDS = 1.0  # a poll that late waits for a rebalance; meanwhile the loop looks after the store
COMMIT_TIMEOUT = 2.0  # seconds; Kafka's client would try for ever, and hold back a shutdown
REVOKE_SECONDS = 30.0  # a rebalance waits for the running batch that long; later is harmless, only work done twice

Polls = Mapping[TopicPartition, list[Message]]


class Partitions(ConsumerRebalanceListener):  # type: ignore[misc]
    """`release` is called before partitions go: finish, flush, commit. `group` names the commits."""

    def __init__(
        self,
        config: Config,
        topics: TableTopics,
        *,
        group: str,
        exclusive: bool,
        release: Callable[[], Awaitable[None]],
        poll_records: int = POLL_RECORDS,
    ) -> None:
        self._config = config
        self._topics = topics
        self._group = group
        self._exclusive = exclusive
        self._release = release
        self._poll_records = poll_records
        self._seat: Seat | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._poll: asyncio.Task[Polls] | None = None
        self._discovered = -inf  # loop time
        self.resting = False
        self.placed = False
        self.reached: dict[Partition, int] = {}

    async def start(self) -> None:
        """Connects and joins. Raises KafkaError; call again after that. LoginError: that would not help."""
        if not self._exclusive and self._seat is None:
            self._seat = Seat(self._group)
        seat = {"client_id": self._seat.name} if self._seat else {}
        consumer = AIOKafkaConsumer(
            **seat,
            **self._config.kafka.client_options(),
            request_timeout_ms=int(self._config.kafka.request_timeout_seconds * 1000),
            group_id=self._group,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_bytes=FETCH_BYTES,
            max_partition_fetch_bytes=PARTITION_BYTES,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_poll_records=self._poll_records,
            max_poll_interval_ms=POLL_INTERVAL_MS,
            metadata_max_age_ms=int(DISCOVERY_SECONDS * 1000),
        )
        try:
            await consumer.start()
        except BaseException as error:
            await disconnect(consumer)
            if isinstance(error, KafkaConnectionError):
                await self._refuse_login(error)
            raise
        self._consumer = consumer
        if self._seat is not None:
            await self._seat.clear(self._config)
            consumer.subscribe(pattern=self._topics.pattern, listener=self)

    def told(self, error: KafkaError) -> dict[str, str]:
        """`reason` and `hint` of a log's line, for an error that is waited out."""
        away = isinstance(error, KafkaConnectionError)
        hint = "start it, or correct [kafka] bootstrap" if away else "it is not ready yet; if that lasts, `cdc doctor`"
        return {"reason": f"Kafka at {self._config.kafka.bootstrap}: {error}", "hint": hint}

    async def _refuse_login(self, error: KafkaConnectionError) -> None:
        """A broker that is away is waited for, one that refuses us is not."""
        reason = await explain(self._config.kafka)
        if isinstance(reason, LoginError):
            raise reason from error

    async def stop(self) -> None:
        """Leaves the group."""
        await self._abandon()
        if self._consumer is not None:
            await disconnect(self._consumer)
            self._consumer = None
        if self._seat is not None:
            self._seat.leave()
            self._seat = None

    @property
    def consumer(self) -> AIOKafkaConsumer:
        """The running client; `start` comes first."""
        if self._consumer is None:
            raise IllegalStateError("the consumer is not started")
        return self._consumer

    @property
    def owned(self) -> set[TopicPartition]:
        """What this process reads now."""
        return set(self.consumer.assignment())

    @property
    def known(self) -> set[str]:
        """The topics found so far, also those whose partitions others read."""
        return set(self.consumer.subscription())

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """The batch that runs is finished, flushed and committed before another process starts from there."""
        self.placed = False
        if revoked:
            try:
                await asyncio.wait_for(self._release(), REVOKE_SECONDS)
            except TimeoutError:
                LOG.warning("partitions go while a batch still runs: the next owner repeats it", count=len(revoked))
        self.reached.clear()

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """`place` follows in the loop, which alone talks to the store."""
        self.placed = False

    def discover_soon(self) -> None:
        """A topic is known to be there that was not found yet."""
        if self._discovered < asyncio.get_running_loop().time() - REDISCOVERY_SECONDS:
            self._discovered = -inf

    async def discover(self) -> None:
        """Exclusive: takes partitions that came since, which then have to be placed. Raises KafkaError."""
        clock = asyncio.get_running_loop().time()
        if not self._exclusive or clock < self._discovered + DISCOVERY_SECONDS:
            return
        self._discovered = clock
        try:
            found = {TopicPartition(*partition) for partition in await table_partitions(self._config, self._topics)}
        except KafkaError as error:
            if not self.owned or not error.retriable:
                self._discovered = -inf
                raise
            LOG.info("topics cannot be listed now; those we have are read on", reason=str(error))
            return
        if found <= self.owned:
            return
        await self._abandon()
        self.placed = False
        self.consumer.assign(sorted(found | self.owned))

    async def place(self, offsets: Offsets) -> None:
        """Every partition goes to the store's offset, or to the beginning of the log where the store knows none."""
        await self._abandon()
        owned = self.owned
        unknown = [partition for partition in owned if tuple(partition) not in offsets]
        starts = await self.consumer.beginning_offsets(unknown) if unknown else {}
        if owned != self.owned:
            return  # a rebalance came between; the loop comes back with the new ones
        for partition in owned:
            self._seek(partition, offsets.get(tuple(partition), starts.get(partition, 0)))
        self.placed = bool(owned)

    async def logs(self) -> dict[Partition, str]:
        """Kafka's id of the log behind each owned partition: another one than before means another log. Raises
        KafkaError."""
        owned = self.owned
        ids = await topic_ids(self._config.kafka, {partition.topic for partition in owned})
        return {tuple(partition): ids[partition.topic] for partition in owned if partition.topic in ids}

    def displace(self) -> None:
        """Every partition is to be placed again, where we stand or the store says."""
        self.placed = False

    def forget(self) -> None:
        """Where we stand is void: the store is to be asked again."""
        self.placed = False
        self.reached.clear()

    def _seek(self, partition: TopicPartition, offset: int) -> None:
        self.consumer.seek(partition, offset)
        self.reached[tuple(partition)] = offset

    async def poll(self, seconds: float, stop: asyncio.Task[object]) -> Polls:
        """Records; {} after `seconds`, when `stop` is done, or when partitions move. Raises KafkaError."""
        if self._poll is None:
            self._poll = asyncio.ensure_future(self.consumer.getmany(timeout_ms=int(seconds * 1000)))
        # a poll can hang in a rebalance for as long as Kafka is away, so it is waited for, and kept if it is not done
        patience = seconds + HANG_SECONDS
        await asyncio.wait({self._poll, stop}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if not self._poll.done():
            return {}
        poll, self._poll = self._poll, None
        try:
            polled: Polls = poll.result()
        except (NoOffsetForPartitionError, OffsetOutOfRangeError):
            if self.placed:
                raise
            return {}  # it looked where the group had committed, which is not where we start
        return polled if self.placed else {}

    async def _abandon(self) -> None:
        """Ends a poll that still waits; what it may have brought comes again after the seek that follows."""
        poll, self._poll = self._poll, None
        if poll is not None:
            poll.cancel()
            await asyncio.wait({poll})
            if not poll.cancelled():
                poll.exception()  # seen, and moot

    async def advance(self) -> None:
        """Everything polled is applied: `reached` follows, also past the marks that end Kafka's transactions."""
        if self._poll is not None:
            return  # it may hold records that nobody has applied
        for partition in self.owned:
            if not self.placed:
                return
            self.reached[tuple(partition)] = await self.consumer.position(partition)

    async def ends(self) -> dict[Partition, int]:
        """Up to where readers of committed records can read each owned partition now, asked of Kafka."""
        ends = await self.consumer.end_offsets(self.owned)
        return {tuple(partition): end for partition, end in ends.items()}

    def lag(self) -> int:
        """Records between what is reached and the end of the log as of the last fetch."""
        total = 0
        for partition in self.owned:
            end = self.consumer.last_stable_offset(partition)
            if end is not None and tuple(partition) in self.reached:
                total += max(0, end - self.reached[tuple(partition)])
        return total

    async def lag_now(self) -> int:
        """The same, with the ends asked of Kafka. Raises KafkaError."""
        ends = await self.ends()
        return sum(max(0, end - self.reached[place]) for place, end in ends.items() if place in self.reached)

    async def hold(self) -> None:
        """While a store is away: nothing is fetched, what was prefetched is let go, membership lives on."""
        owned = self.owned
        self.consumer.pause(*owned)
        if not self.placed:
            return  # a rebalance runs, in which a poll would hang
        try:
            await self.consumer.getmany(timeout_ms=0)
        except KafkaError as error:
            LOG.debug("Kafka reports while the store is waited for; the next poll will again", reason=str(error))

    def go_on(self) -> None:
        """The end of `hold`."""
        self.consumer.resume(*self.owned)

    def rest(self, still: bool) -> None:
        """Nothing more is fetched while somebody wants the store to stand still; membership lives on."""
        if self._consumer is None:
            return  # it will be said again before the first poll
        if still:
            self.consumer.pause(*self.owned)  # again each time: a rebalance brings others
        elif self.resting:
            self.go_on()
        self.resting = still

    async def commit(self, offsets: Offsets) -> None:
        """Tells the group what the store holds; for tools only, so that a group that has moved on is no error."""
        owned = self.owned
        ours = {TopicPartition(*p): offset for p, offset in offsets.items() if TopicPartition(*p) in owned}
        if not ours:
            return
        try:
            await asyncio.wait_for(self.consumer.commit(ours), COMMIT_TIMEOUT)
        except (CommitFailedError, IllegalStateError) as error:
            LOG.info("the group moved on before its offsets were committed", reason=type(error).__name__)
        except TimeoutError:
            LOG.warning("Kafka does not take the group's offsets; the store has its own", group=self._group)
