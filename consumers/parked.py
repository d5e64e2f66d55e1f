"""Which keys of a store are parked: a record of theirs went to the dead letters, and nothing newer has settled it.

The dead-letter topic is the truth; this reads all of it at the start and goes on reading. A parked key holds nobody up,
not even itself: the next record of the key that the store takes settles the letter, because it holds the whole row and
is newer. A letter is settled, and noted as such in the topic, when

  - the store takes a newer record of its key, or a marker removes the key (`passed`, `truncated`),
  - the store turns out to hold something newer already, as after a restart or a rebuild (`_look`),
  - a redrive has put it into the store, or has found it outdated (`consumers.redrive`),
  - a person discards it.

Everything here runs in one event loop; `listen` beside the runtime's own loop, the rest within it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError

from cdc import log, metrics
from cdc.config import Config
from cdc.errors import ConnectError, StoreError
from consumers.connection import disconnect
from consumers.dead_letters import DeadLetters
from consumers.letters import DeadLetter, Entry, OpenLetters, Outcome, parse
from consumers.retry import MOST_SECONDS, Action, delays, policy_for
from consumers.store import Batch, Inspectable, Partition, Rejected
from consumers.topics import TableTopics

LOG = log.get(__name__)

LOOKUP = 1000  # keys asked of the store at once
POLL_MS = 1000  # how often letters that could not be looked at are looked at again
NEVER = float("nan")  # the age of no letter; no comparison with it is true


class Parked:
    """One store's open letters. `owns` tells whether this process applies a partition now."""

    def __init__(
        self,
        config: Config,
        topics: TableTopics,
        letters: DeadLetters,
        store: tuple[str, Inspectable],
        owns: Callable[[Partition], bool],
    ) -> None:
        self._config = config
        self._topics = topics
        self._letters = letters
        self._store, self._held = store
        self._owns = owns
        self._topic = config.kafka.dead_letter_topic(self._store)
        self._unseen: set[str] = set()  # ids of letters not yet compared with the store
        self.open = OpenLetters()
        self.requested = asyncio.Event()

    async def listen(self) -> None:
        """Reads the topic for ever; Kafka being away is waited out, anything else is raised."""
        attempts = delays()
        while True:
            started = time.monotonic()
            try:
                await self._read()
            except KafkaError as error:
                if policy_for(error).action is not Action.WAIT:
                    raise
                LOG.debug("waiting for dead letters", topic=self._topic, reason=str(error))
            if time.monotonic() > started + MOST_SECONDS:
                attempts = delays()
            self._letters.written.clear()
            try:
                await asyncio.wait_for(self._letters.written.wait(), next(attempts))
            except TimeoutError:
                pass  # it is tried again anyway

    async def _read(self) -> None:
        """One connection's life. Raises KafkaError."""
        kafka = self._config.kafka
        consumer = AIOKafkaConsumer(
            **kafka.client_options(),
            request_timeout_ms=int(kafka.request_timeout_seconds * 1000),
            auto_offset_reset="earliest",
        )
        try:
            await consumer.start()
            if self._topic not in await consumer.topics():
                self._show()
                raise UnknownTopicOrPartitionError("there was no dead letter yet")
            self.open = OpenLetters()
            partition = TopicPartition(self._topic, 0)
            consumer.assign([partition])
            end = (await consumer.end_offsets([partition]))[partition]
            while True:
                polled = await consumer.getmany(timeout_ms=POLL_MS)
                for message in polled.get(partition, []):
                    self._hear(parse(message))
                if await consumer.position(partition) >= end:
                    await self._look()
        finally:
            await disconnect(consumer)

    def _hear(self, entry: Entry | None) -> None:
        if entry is None:
            return
        if isinstance(entry, DeadLetter):
            self._unseen.add(entry.id)
            entry = entry._replace(value=None)  # the record's own topic still has it as long as it matters
        self.open.add(entry)

    async def _look(self) -> None:
        """Once the end was reached: letters that came are compared with the store, and the rest is shown."""
        try:
            await self._compare()
        except (ConnectError, StoreError, KafkaError) as error:
            LOG.debug("letters are compared with the store later", store=self._store, reason=str(error))
        self._show()
        if self.open.requested:
            self.requested.set()

    def recheck(self) -> None:
        """The store may be another one now."""
        self._unseen = {letter.id for letter in self.open}

    async def _compare(self) -> None:
        """Settles letters below what the store holds of their key. Raises what the store and Kafka raise."""
        found = [letter for id in self._unseen if (letter := self.open.get(id)) is not None and letter.position]
        settled: dict[DeadLetter, Outcome] = {}
        for topic in {letter.topic for letter in found if letter.topic in self._topics}:
            ours = [letter for letter in found if letter.topic == topic and self._owns(letter.place)]
            for start in range(0, len(ours), LOOKUP):
                settled.update(await self._newer(topic, ours[start : start + LOOKUP]))
        await self.settle(settled)
        waiting = {letter.id for letter in found if not self._owns(letter.place)}
        self._unseen &= waiting

    async def _newer(self, topic: str, letters: Sequence[DeadLetter]) -> dict[DeadLetter, Outcome]:
        keys = [letter.key or b"" for letter in letters]
        held = await self._held.versions(*self._topics.split(topic), keys)
        pairs = zip(letters, held, strict=True)
        return {
            letter: "superseded" if version.position > letter.position else "redriven"
            for letter, version in pairs
            if version is not None and version.position >= letter.position
        }

    async def passed(self, batch: Batch, rejected: Sequence[Rejected], insist: Insist) -> None:
        """A batch is applied: its records settle the older letters of their keys."""
        parked = self.open.parked.get(batch.topic)
        if not parked:
            return
        refused = {(letter.record.key, letter.record.position) for letter in rejected}
        settled: dict[DeadLetter, Outcome] = {}
        for record in batch.records:
            letter = parked.get(record.key)
            if letter is None or record.position < letter.position or (record.key, record.position) in refused:
                continue
            settled[letter] = "superseded" if record.position > letter.position else "redriven"
        await insist("closing dead letters", lambda: self.settle(settled))

    async def truncated(self, batch: Batch, below: bytes, insist: Insist) -> None:
        """A marker removed every row of its partition below a position; letters have no better fate."""
        place = next(iter(batch.offsets))
        letters = self.open.parked.get(batch.topic, {}).values()
        gone = [letter for letter in letters if letter.place == place and letter.position < below]
        settled: dict[DeadLetter, Outcome] = dict.fromkeys(gone, "superseded")
        await insist("closing dead letters", lambda: self.settle(settled))

    async def settle(self, settled: dict[DeadLetter, Outcome]) -> None:
        """Durably, then here. Raises KafkaError; may be called again after that."""
        await self._letters.close_letters(settled)
        for letter in settled:
            self.open.close(letter)

    def _show(self) -> None:
        oldest = min((letter.time_ms for letter in self.open), default=None)
        metrics.STORE_OPEN_LETTERS.labels(self._store).set(len(self.open))
        metrics.STORE_OLDEST_LETTER.labels(self._store).set(NEVER if oldest is None else oldest / 1000)


Insist = Callable[[str, Callable[[], Awaitable[None]]], Awaitable[None]]
