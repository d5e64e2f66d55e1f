"""The loop every consumer runs, whatever its store, in five numbered steps:

    (1) poll      records of the partitions this process owns
    (2) group     into batches of one table, split at markers
    (3) apply     the store makes a batch visible; what it rejects becomes a dead letter
    (4) durable   the store says up to which offsets it would survive a crash
    (5) commit    those offsets go to Kafka, for tools that draw lag

The start is always what the store itself holds, so a crash between any two steps only repeats work, and a store
that applies by version is not changed by that. At most one poll is held undone; while a step is tried again
nothing is fetched. What follows on which error is one table, in `consumers.retry`.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator, Sequence
from typing import Any, cast

from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from cdc import log, metrics
from cdc.config import Config
from cdc.ending import end
from cdc.errors import ConnectError, StoreLost
from cdc.failpoint import failpoint
from cdc.garbage import collect_rarely
from cdc.refusal import denied
from cdc.trail import Trail
from cdc.wishes import Wishes
from consumers.batches import Foreign, Marker, Work, work
from consumers.caretaker import Caretaker
from consumers.dead_letters import DeadLetters
from consumers.filling import Filling
from consumers.freshness import Freshness
from consumers.gauges import Gauges
from consumers.insistence import Insistence, Interrupted
from consumers.isolation import apply_isolating, without
from consumers.logs import LogEnds
from consumers.parked import Parked
from consumers.partitions import POLL_RECORDS, Partitions, Polls
from consumers.redrive import Redrive
from consumers.retry import Action, Policy, delays, policy_for
from consumers.store import Applied, Batch, Inspectable, Offsets, Partition, Rejected, Store
from consumers.topics import ALL_TABLES, TableTopics

LOG = log.get(__name__)

BATCH_RECORDS = 5000  # what a store gets at once; it may cut finer
POLL_SECONDS = 0.25  # an idle loop looks after itself that often
COMMIT_SECONDS = 1.0  # commits are for tools: one a second is enough for a graph
CHECK_SECONDS = 5.0  # a store that lost its data is noticed within that time, idle or not


class Runtime:
    """One store's consumer. `exclusive`: all partitions are ours (an index); else a group shares them.

    `counts` is the store's reading side, for the rows gauge; `tables` are `schema.table` patterns.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        *,
        exclusive: bool,
        counts: Inspectable | None = None,
        tables: Sequence[str] = ALL_TABLES,
        batch_records: int = BATCH_RECORDS,
        poll_records: int = POLL_RECORDS,
        check_seconds: float = CHECK_SECONDS,
    ) -> None:
        self._config = config
        self._store = store
        self._topics = TableTopics(config.kafka.prefix, tables)
        self._group = f"cdc-{store.name}-{config.kafka.prefix}"
        self._batch_records = batch_records
        self._working = asyncio.Lock()
        self._opened: Offsets | None = None
        self._committed: Offsets = {}
        self._noted: dict[Partition, int] = {}  # offsets the store was given when there was nothing to apply
        self._owed: dict[Partition, int] = {}  # where we stood when the store lost its data: until then it is not up
        self._filling = Filling(store.name)
        self._void: set[Partition] = set()  # their logs have lost the offsets where we stood
        self._next_commit = 0.0  # loop time
        self._again: Iterator[float] | None = None  # delays, while refills follow each other
        self._dead_letters = DeadLetters(config, store.name)
        self._logs = LogEnds(config)
        self._trail = Trail(config, store.name)
        self.freshness = Freshness(config, store.name)
        self.gauges = Gauges(store.name, counts)
        self.partitions = Partitions(
            config,
            self._topics,
            group=self._group,
            exclusive=exclusive,
            release=self._release,
            poll_records=poll_records,
        )
        self._wishes = Wishes(config.kafka, store.name, self.partitions.rest)
        self._insist = Insistence(store.name, self.partitions, self.gauges)
        self._caretaker = Caretaker(store, self._topics, self.partitions, self.gauges, self._insist, check_seconds)
        held = counts or cast(Inspectable, store)
        owns = self.partitions.reached.__contains__
        self.parked = Parked(config, self._topics, self._dead_letters, (store.name, held), owns)
        self._redrive = Redrive(config, self._topics, self.parked, self.partitions.reached)

    def stop(self) -> None:
        """Ends `run` after the running batch. May be called from a signal handler."""
        self._insist.stop.set()

    async def wait_for(self, position: bytes) -> None:
        """Returns once everything up to `position` is applied; the caller bounds the time."""
        await self.freshness.wait_for(position, self._written, self.partitions.reached)

    async def _written(self) -> dict[Partition, int]:
        return await self._logs.ends(list(self.partitions.reached))

    async def serve(self) -> None:
        """`run` until SIGTERM or SIGINT, as what a process is there for."""
        collect_rarely()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        try:
            await self.run()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def run(self) -> None:
        """Until `stop`. Raises CdcError when only a person can help; the store and the group are left in order."""
        stopping = asyncio.ensure_future(self._insist.stop.wait())
        beside = (self.freshness.listen(), self.parked.listen(), self._redrive.prepare(), self._wishes.listen())
        listening = [asyncio.ensure_future(work) for work in beside]
        try:
            await self._start()
            while not self._insist.stop.is_set():
                await self._guarded(stopping)
                for task in listening:
                    if task.done():
                        await task
            await self._release()
        except Interrupted:
            LOG.info("stopping while a server is away; the next start goes on from there", store=self._store.name)
        except KafkaError as error:
            raise denied(error, self._config.kafka, "consuming") or ConnectError(
                f"Kafka at {self._config.kafka.bootstrap} refuses: {error!r}", hint="`cdc doctor` says what is missing"
            ) from error
        finally:
            await self._close(stopping, *listening, *self._caretaker.running())

    async def _close(self, *tasks: asyncio.Future[Any]) -> None:
        await end(*tasks)
        await self.partitions.stop()
        await self._dead_letters.close()
        await self._logs.close()
        await self._store.close()

    async def _start(self) -> None:
        """Whichever server comes up last is waited for."""
        await self._insist("connecting to Kafka", self.partitions.start)
        await self._open()
        LOG.info("consuming", store=self._store.name, group=self._group)

    async def _open(self) -> Offsets:
        offsets = await self._insist("opening the store", self._store.open)
        self._opened = offsets
        self._noted = {}
        self.gauges.up(not self._owed)
        self.parked.recheck()
        return offsets

    async def _guarded(self, stopping: asyncio.Task[Any]) -> None:
        """One round; a store or a log that lost data is replayed into, everything unknown goes up."""
        try:
            await self._round(stopping)
            self._again = None
        except Interrupted:
            if not self._insist.stop.is_set():
                LOG.info("partitions were taken away; their next owner goes on", store=self._store.name)
        except Exception as error:
            policy = policy_for(error)
            if policy.action is not Action.REFILL:
                raise
            await self._refill(error, policy)

    async def _round(self, stopping: asyncio.Task[Any]) -> None:
        await self._take()
        still = self._wishes.stills(self._store.name)
        self.partitions.rest(still)
        # (1) poll
        polled = await self._insist("polling", lambda: self.partitions.poll(POLL_SECONDS, stopping))
        async with self._working:
            if self.partitions.placed:
                with self._insist.applying():
                    await self._process(polled)
                    if not still:
                        await self._redrive.answer(self._apply_once, self._store, self._insist)
        counted = not (self._owed or self._filling.under_way(self.partitions.reached))
        await self._caretaker.look(whole=not self._owed, counted=counted)

    async def _process(self, polled: Polls) -> None:
        """Steps 2 to 5 of one poll."""
        failpoint("consumer.polled")
        ends = {partition: await self.partitions.consumer.position(partition) for partition in polled}
        todo = work(self._topics, polled, ends, self._batch_records)  # (2) group
        for step in todo.steps:
            await self._perform(step)  # (3) apply
            failpoint("consumer.applied")
        await self.partitions.advance()
        if not polled:
            await self._pass_marks()
        self._settle()
        self._observe(todo)
        durable = await self._insist("flushing", self._store.flush)  # (4) durable
        failpoint("consumer.flushed")
        await self._commit(durable)  # (5) commit
        failpoint("consumer.committed")

    async def _take(self) -> None:
        """Partitions that are new here start where the store stands, or we stood."""
        await self._insist("looking for topics", self.partitions.discover)
        if self.partitions.placed or not self.partitions.owned:
            return
        async with self._working:
            offsets = await self._reopen() if self._opened is None else self._opened
            start = {**offsets, **self.partitions.reached}
            for partition in await self._begin(set(start)):
                del start[partition]
            self._opened = start
            await self._insist("finding offsets", lambda: self.partitions.place(start))
            self._filling.begin(start, await self._insist("finding the logs' ends", self.partitions.ends))

    async def _begin(self, standing: set[Partition]) -> set[Partition]:
        """Has the store note whose log it reads; what stood in a log that is no more begins anew, and is returned."""
        logs = await self._insist("asking for the topics' ids", self.partitions.logs)
        known = self._store.logs
        changed = {partition for partition, log in logs.items() if known.get(partition, log) != log}
        fresh = {partition: log for partition, log in logs.items() if known.get(partition) != log}
        void = (changed | self._void) & standing
        if fresh or void:
            await self._insist("noting the topics' ids", lambda: self._store.begin(fresh, void))
        self._void = set()
        if changed:
            metrics.STORE_REBUILDS.labels(self._store.name, "topic").inc()
            LOG.error(
                "topics were deleted and made anew; they are replayed from their beginning", store=self._store.name,
                partitions=sorted(changed), hint="run `cdc resync`: it also removes rows that are in no topic any more",
            )  # fmt: skip
        return void

    async def _reopen(self) -> Offsets:
        """What the store holds now: after a loss, or after other processes wrote to it."""
        await self._store.close()
        return await self._open()

    async def _perform(self, step: Batch | Marker | Foreign) -> None:
        if isinstance(step, Batch):
            await self._apply(step)
        elif isinstance(step, Marker):
            removed = await self._insist("removing rows", lambda: self._store.truncate(step.batch, step.below))
            self.gauges.truncated(step.batch, removed)
            await self.parked.truncated(step.batch, step.below, self._insist)
        else:
            await self._reject(step.topic, step.rejected)

    async def _apply(self, batch: Batch) -> None:
        begun = self._trail.now()
        applied = await apply_isolating(self._insistently, batch)
        rest, refused = batch, applied.rejected
        while refused:  # the letters first, then the offsets
            await self._reject(batch.topic, refused)
            rest = without(rest, refused)
            refused = (await apply_isolating(self._insistently, rest)).rejected
        await self.parked.passed(batch, applied.rejected, self._insist)
        self.gauges.applied(batch, applied)
        if self._trail.told:
            positions = [(record.position, record.partition, record.offset) for record in batch.records]
            self._trail.applied(f"{batch.schema}.{batch.table}", positions, begun)

    async def _pass_marks(self) -> None:
        """Idle: the store notes that it is also past the marks that end Kafka's transactions, and past aborted records.
        Whoever reads its offsets waits for the end of the log, which lies behind them."""
        behind = {place: at for place, at in self.partitions.reached.items() if at > self._noted.get(place, 0)}
        for topic in {topic for topic, _partition in behind}:
            offsets = {place: at for place, at in behind.items() if place[0] == topic}
            await self._insistently(Batch(*self._topics.split(topic), topic, [], offsets))
        self._noted |= behind

    async def _insistently(self, batch: Batch) -> Applied:
        return await self._insist("applying", lambda: self._store.apply(batch))

    async def _reject(self, topic: str, rejected: Sequence[Rejected]) -> None:
        await self._insist("writing dead letters", lambda: self._dead_letters.add(topic, rejected))

    async def _apply_once(self, batch: Batch) -> Applied:
        """Of a redrive; also lets go of what is refused, with new letters."""
        applied = await apply_isolating(self._insistently, batch)
        if applied.rejected:
            await self._reject(batch.topic, applied.rejected)
        return applied

    def _observe(self, done: Work) -> None:
        self.freshness.applied(done.newest)
        complete = self.freshness.reached(self.partitions.reached, self._topics.__contains__, self.partitions.known)
        if not complete:
            self.partitions.discover_soon()

    def _settle(self) -> None:
        """A store that lost its data is up again once it holds what it held, as far as the partitions are ours."""
        reached = self.partitions.reached
        if self._owed and reached and all(at >= self._owed.get(place, 0) for place, at in reached.items()):
            self._owed = {}
            self.gauges.up(True)
            LOG.info("the store is refilled", store=self._store.name)

    async def _commit(self, durable: Offsets) -> None:
        clock = asyncio.get_running_loop().time()
        if clock >= self._next_commit and durable != self._committed:
            self._next_commit = clock + COMMIT_SECONDS
            await self.partitions.commit(durable)
            self._committed = dict(durable)

    async def _release(self) -> None:
        """Before partitions go: the running batch is finished, what can be made durable is, and the group is told."""
        async with self._working:
            if self._opened is None:
                return
            self._opened = None  # whoever comes next, we too, asks the store
            try:
                durable = await self._store.flush(force=True)
            except (ConnectError, StoreLost) as error:
                LOG.warning("partitions go without a last flush", store=self._store.name, reason=error.message)
            else:
                await self.partitions.commit(durable)

    async def _refill(self, error: Exception, policy: Policy) -> None:
        """Replays what is lost: all that the store does not hold, or all that a log still has."""
        metrics.STORE_REBUILDS.labels(self._store.name, policy.reason).inc()
        if self._again is not None:
            await self._insist.pause(next(self._again))
        else:
            self._again = delays()
        if isinstance(error, OffsetOutOfRangeError):
            lost = [tuple(partition) for partition in error.args[0]]
            self._void |= set(lost)
            self.partitions.displace()
            self._owed = {}  # offsets of a log that is no more
            LOG.error(
                "topics no longer have the offsets the store had reached; they are replayed from their beginning",
                store=self._store.name, partitions=lost, hint="run `cdc verify`: were topics deleted or made anew?",
            )  # fmt: skip
        else:
            LOG.error("the store lost its data and is refilled by replay", store=self._store.name, reason=str(error))
            for place, at in self.partitions.reached.items():
                self._owed[place] = max(at, self._owed.get(place, 0))
            self.gauges.up(False)
            self.freshness.forget()
            self._opened = None
            self.partitions.forget()
