"""Filling a store anew by replaying the topics, beside the live one, which goes on serving and consuming.

    (1) shadow    an empty store of the same kind
    (2) replay    from the beginning of every table topic to the ends they had at the start
    (3) catch up  what came meanwhile, again and again, until little is left
    (4) verify    every key's version against the topics, then (told, not decisive) against the live store
    (5) swap      atomically, after catching up once more; the old store is kept for `rollback`

The topics are the truth here: a damaged or empty live store must not prevent its own rebuild. What arrives between
(3) and (5) is not lost: the shadow carries its own offsets, and the live consumer, whose `check` finds another store,
reopens and goes on from there. If anything fails before (5), the live store is as it was.

A replay of a part (`refill`) goes into the live store instead: in a shadow it would yield only the rows that changed
since, and swapping that would lose the others. Records at or below what is held change nothing, so it mends rows
that are missing or older than the topics; a row that is wrong at the right version needs the whole rebuild.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

from aiokafka import TopicPartition

from cdc import log, metrics
from cdc.config import Config
from cdc.errors import ConnectError, StoreError
from cdc.failpoint import failpoint
from cdc.topic_ids import topic_ids
from consumers.batches import Foreign, Marker, Message, work
from consumers.dead_letters import DeadLetters
from consumers.expectation import Difference, Expectation, Table, confirmed
from consumers.isolation import apply_isolating, without
from consumers.replay import Replayer, Span
from consumers.runtime import BATCH_RECORDS
from consumers.store import Batch, Inspectable, Partition, Rebuildable, Rejected, Store
from consumers.topics import ALL_TABLES, TableTopics, table_partitions

LOG = log.get(__name__)

SMALL_REST = 1000  # records: replayed in a few ms, so the swap comes close behind
SHOWN = 1000  # differences kept in a report
LATE_SECONDS = 3.0  # a live consumer gets that long to catch up before a difference counts
LOOK_SECONDS = 0.25  # between two looks

Phase = Literal["replay", "catch up", "verify", "swap"]


class Progress(NamedTuple):
    """Where a rebuild is; `done` and `total` count offsets, `seconds` since its start."""

    phase: Phase
    done: int
    total: int
    seconds: float


OnProgress = Callable[[Progress], None]


@dataclass
class Report:
    """What a rebuild did. `counts`: rows a table in the new store, by the topics, in the live store (None: unread)."""

    records: int = 0
    seconds: float = 0.0
    rejected: Counter[str] = field(default_factory=Counter)
    counts: dict[str, tuple[int, int, int | None]] = field(default_factory=dict)
    live_differences: list[Difference] = field(default_factory=list)
    live_error: str = ""
    swapped: bool = False


class Since(NamedTuple):
    """Where a partial replay starts: one offset for every partition, or a time (Unix milliseconds) of the records."""

    offset: int | None = None
    time_ms: int | None = None


class _Filling:
    """Feeds one store from a replay, and the expectation along with it."""

    def __init__(self, config: Config, store: Store, topics: TableTopics, on_progress: OnProgress) -> None:
        self._store = store
        self._topics = topics
        self._on_progress = on_progress
        self._letters = DeadLetters(config, store.name)
        self._started = time.monotonic()
        self._done = 0
        self._total = 0
        self.expectation: Expectation | None = None
        self.report = Report()

    async def begin(self, partitions: Sequence[Partition], config: Config) -> None:
        """Has the store note whose logs it reads. Raises KafkaError and what the store raises."""
        ids = await topic_ids(config.kafka, {topic for topic, _number in partitions})
        await self._store.begin({place: ids[place[0]] for place in partitions if place[0] in ids}, ())

    async def fill(self, replayer: Replayer, spans: Mapping[Partition, Span], phase: Phase) -> None:
        """Replays these spans. Raises what the store raises."""
        at = {p: span.start or 0 for p, span in spans.items()}
        self._total += sum(max(0, span.end - at[p]) for p, span in spans.items())
        async for partition, messages, reached in replayer.read(spans):
            await self._apply(TopicPartition(*partition), messages, reached)
            self._done += reached - at[partition]
            at[partition] = reached
            failpoint("rebuild.replaying")
            self.report.records += len(messages)
            self.tell(phase)

    def tell(self, phase: Phase) -> None:
        """To whoever draws the bar."""
        self.report.seconds = time.monotonic() - self._started
        self._on_progress(Progress(phase, self._done, self._total, self.report.seconds))

    async def _apply(self, partition: TopicPartition, messages: Sequence[Message], reached: int) -> None:
        for step in work(self._topics, {partition: messages}, {partition: reached}, BATCH_RECORDS).steps:
            if isinstance(step, Foreign):
                await self._reject(step.topic, step.rejected)
            elif isinstance(step, Marker):
                await self._store.truncate(step.batch, step.below)
                if self.expectation is not None:
                    self.expectation.truncate((step.batch.schema, step.batch.table), step.below)
            else:
                await self._batch(step)

    async def _batch(self, batch: Batch) -> None:
        table = batch.schema, batch.table
        applied = await apply_isolating(self._store.apply, batch)
        if self.expectation is not None:
            self.expectation.add(table, batch.records)
            self.expectation.refuse(table, [rejected.record for rejected in applied.rejected])
        rest, refused = batch, applied.rejected
        while refused:  # the letters first, then the offsets
            await self._reject(batch.topic, refused)
            rest = without(rest, refused)
            refused = (await apply_isolating(self._store.apply, rest)).rejected

    async def _reject(self, topic: str, rejected: Sequence[Rejected]) -> None:
        self.report.rejected.update(letter.reason for letter in rejected)
        await self._letters.add(topic, rejected)

    async def close(self) -> None:
        await self._letters.close()


async def rebuild(
    config: Config,
    store: Rebuildable,
    *,
    tables: Sequence[str] = ALL_TABLES,
    live: Inspectable | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> Report:
    """Steps 1 to 5; `live` is the store in use, if it can be read. Raises StoreError without swapping when the new
    store is not what the topics say, and whatever Kafka or the store raise."""
    topics = TableTopics(config.kafka.prefix, tables)
    shadow = await store.shadow()  # (1) shadow
    filling = _Filling(config, shadow, topics, on_progress)
    filling.expectation = expectation = Expectation()
    try:
        await shadow.open()
        async with Replayer(config) as replayer:
            reached = await _replay(config, replayer, topics, filling, {})  # (2) replay, (3) catch up
            filling.tell("verify")
            built = cast(Inspectable, shadow)
            await _both(_verify(built, expectation), shadow.flush(force=True))  # (4) verify, while an index is trained
            await _count(built, expectation, filling.report)
            await _compare(live, expectation, filling.report)
            # what came meanwhile: readers see older rows for a moment only
            await _replay(config, replayer, topics, filling, reached)
        await shadow.flush(force=True)
    finally:
        await shadow.close()
        await filling.close()
    filling.tell("swap")
    failpoint("rebuild.before-swap")
    await store.swap()  # (5) swap
    failpoint("rebuild.after-swap")
    filling.report.swapped = True
    metrics.STORE_REBUILDS.labels(shadow.name, "rebuild").inc()
    return filling.report


async def _replay(
    config: Config, replayer: Replayer, topics: TableTopics, filling: _Filling, reached: Mapping[Partition, int]
) -> Mapping[Partition, int]:
    """From `reached`, or the topics' beginning, until little is left; the offsets it came to."""
    phase: Phase = "catch up" if reached else "replay"
    while True:
        partitions = await table_partitions(config, topics)
        if not reached:
            await filling.begin(partitions, config)
        ends = await replayer.ends(partitions)
        starts = await replayer.starts([p for p in partitions if p not in reached])
        spans = {p: Span(reached.get(p, starts.get(p)), end) for p, end in ends.items()}
        rest = sum(span.end - (span.start or 0) for span in spans.values())
        await filling.fill(replayer, spans, phase)
        reached = {**reached, **ends}
        if rest <= SMALL_REST:
            return reached
        phase = "catch up"


async def _both(first: Coroutine[Any, Any, object], second: Coroutine[Any, Any, object]) -> None:
    """Each to its end, whatever becomes of the other. Raises what one of them raised."""
    for outcome in await asyncio.gather(first, second, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


async def _verify(shadow: Inspectable, expectation: Expectation) -> None:
    """Raises StoreError when the new store differs from the topics."""
    for table in expectation.tables:
        found = [difference async for difference in expectation.differences(shadow, table)]
        if found:
            first = found[0]
            raise StoreError(
                f"the rebuilt store differs from the topics in {len(found)} keys of {'.'.join(table)}; the first is"
                f" {first.kind}: {first.key.decode(errors='replace')}; nothing was swapped",
                hint="rebuild again; if it stays, keep the logs and report it",
            )


async def _count(shadow: Inspectable, expectation: Expectation, report: Report) -> None:
    """Of the new store as it is swapped in."""
    for table in expectation.tables:
        report.counts[".".join(table)] = (await shadow.count(*table), expectation.count(table), None)


async def _compare(live: Inspectable | None, expectation: Expectation, report: Report) -> None:
    """What the live store had wrong: worth knowing, and often the reason for the rebuild."""
    if live is None:
        return
    try:
        for table in expectation.tables:
            found = [difference async for difference in expectation.differences(live, table)]
            report.live_differences += await _lasting(live, table, found[:SHOWN])
            rebuilt, expected, _unread = report.counts[".".join(table)]
            report.counts[".".join(table)] = (rebuilt, expected, await live.count(*table))
    except (StoreError, ConnectError) as error:
        report.live_error = error.message
        LOG.warning("the live store cannot be read, so the topics alone are the measure", reason=error.message)


async def _lasting(live: Inspectable, table: Table, found: Sequence[Difference]) -> Sequence[Difference]:
    """Without what the live store's consumer was only late with."""
    deadline = time.monotonic() + LATE_SECONDS
    while found and time.monotonic() < deadline:
        await asyncio.sleep(LOOK_SECONDS)
        found = await confirmed(live, table, found)
    return found


async def refill(
    config: Config,
    store: Store,
    since: Since,
    *,
    tables: Sequence[str] = ALL_TABLES,
    on_progress: OnProgress = lambda progress: None,
) -> Report:
    """Replays a part of the topics into the live store; see the module's text for what that can mend.

    It starts at the store's own offset where that is earlier: what lies between would else count as applied."""
    topics = TableTopics(config.kafka.prefix, tables)
    filling = _Filling(config, store, topics, on_progress)
    try:
        held = await store.open()
        async with Replayer(config) as replayer:
            partitions = await table_partitions(config, topics)
            ends, first = await replayer.ends(partitions), await replayer.starts(partitions)
            wanted = await _since(replayer, partitions, since)
            starts = {p: max(first[p], min(wanted[p], held.get(p, 0))) for p in partitions}
            await filling.fill(replayer, {p: Span(starts[p], ends[p]) for p in partitions}, "replay")
        await store.flush(force=True)
    finally:
        await store.close()
        await filling.close()
    metrics.STORE_REBUILDS.labels(store.name, "refill").inc()
    return filling.report


async def _since(replayer: Replayer, partitions: Sequence[Partition], since: Since) -> Mapping[Partition, int]:
    if since.time_ms is not None:
        return await replayer.at_time(partitions, since.time_ms)
    return dict.fromkeys(partitions, since.offset or 0)


async def rollback(store: Rebuildable) -> None:
    """Puts the store back that the last swap replaced; its consumer then catches up from that store's offsets."""
    await store.rollback()
