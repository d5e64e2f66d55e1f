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
from collections.abc import Callable, Sequence

from aiokafka.errors import KafkaError

from cdc import log, metrics
from cdc.config import Config
from cdc.errors import ConnectError, StoreError
from consumers.dead_letters import DeadLetters
from consumers.insistence import Insistence
from consumers.letters import DeadLetter, Entry, OpenLetters, Outcome, parse
from consumers.retry import Action, policy_for
from consumers.store import Batch, Inspectable, Partition, Rejected
from consumers.tail import follow, tail
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
        await follow(self._read, self._waiting, self._pause)

    def _waiting(self, error: KafkaError) -> None:
        self._show()
        LOG.debug("waiting for dead letters", topic=self._topic, reason=str(error))

    async def _pause(self, seconds: float) -> None:
        """Shorter when a letter has just been written."""
        self._letters.written.clear()
        try:
            await asyncio.wait_for(self._letters.written.wait(), seconds)
        except TimeoutError:
            pass  # it is tried again anyway

    async def _read(self) -> None:
        async with tail(self._config.kafka, self._topic) as (consumer, partition, end):
            self.open = OpenLetters()
            while True:
                polled = await consumer.getmany(timeout_ms=POLL_MS)
                for message in polled.get(partition, []):
                    self._hear(parse(message))
                if await consumer.position(partition) >= end:
                    await self._look()

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
            if not isinstance(error, StoreError) and policy_for(error).action is not Action.WAIT:
                raise  # a store that is being opened anew is no such case
            LOG.debug("letters are compared with the store later", store=self._store, reason=str(error))
        self._show()
        if self.open.requested:
            self.requested.set()

    def recheck(self) -> None:
        """The store was opened: it may be another one now, and hold more."""
        self._unseen = {letter.id for letter in self.open}

    async def _compare(self) -> None:
        """Settles letters below what the store holds of their key. Raises what the store and Kafka raise."""
        looking, self._unseen = self._unseen, set()
        try:
            found = [letter for id in looking if (letter := self.open.get(id)) is not None and letter.position]
            ours = [letter for letter in found if self._owns(letter.place)]
            await self.settle(await self._outrun(ours))
            looking = {letter.id for letter in found if not self._owns(letter.place)}
        finally:
            self._unseen |= looking  # again later: when something failed all, else those of other members

    async def _outrun(self, letters: Sequence[DeadLetter]) -> dict[DeadLetter, Outcome]:
        settled: dict[DeadLetter, Outcome] = {}
        for topic in {letter.topic for letter in letters if letter.topic in self._topics}:
            of_topic = [letter for letter in letters if letter.topic == topic]
            for start in range(0, len(of_topic), LOOKUP):
                settled.update(await self._newer(topic, of_topic[start : start + LOOKUP]))
        return settled

    async def _newer(self, topic: str, letters: Sequence[DeadLetter]) -> dict[DeadLetter, Outcome]:
        keys = [letter.key or b"" for letter in letters]
        held = await self._held.versions(*self._topics.split(topic), keys)
        pairs = zip(letters, held, strict=True)
        return {
            letter: "superseded" if version.position > letter.position else "redriven"
            for letter, version in pairs
            if version is not None and version.position >= letter.position
        }

    async def passed(self, batch: Batch, rejected: Sequence[Rejected], insist: Insistence) -> None:
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

    async def truncated(self, batch: Batch, below: bytes, insist: Insistence) -> None:
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
