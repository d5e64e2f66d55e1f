"""Redriving dead letters: the record itself, from its own topic, once more through the ordinary apply path.

    (1) look      from the letter's record to where the store stands: does a newer one of its key follow, or a marker?
    (2) apply     between two batches of the consumer, which alone writes to the store; by version, as always
    (3) flush     a closing must not be more durable than what it tells of
    (4) answer    redriven; superseded, when (1) found something newer; or the letter anew, when it is refused again

(1) is what makes a redrive harmless at any time: a store forgets its tombstones in the end, so its versions alone could
not keep a row that was deleted since from coming back. What follows after (1) the consumer notices itself, in order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from aiokafka.errors import KafkaError

from cdc import log
from cdc.config import Config
from cdc.envelope import MARKER_KEYS
from consumers.batches import Message, marker_below, to_records
from consumers.insistence import Insistence
from consumers.letters import DeadLetter, Outcome
from consumers.parked import Parked
from consumers.replay import Replayer, Span
from consumers.store import Applied, Batch, Partition, Record, Store
from consumers.topics import TableTopics

LOG = log.get(__name__)
Apply = Callable[[Batch], Awaitable[Applied]]  # which writes letters of what is refused


@dataclass
class Found:
    """What the topic says of one letter."""

    record: Record | None = None  # its own
    newer: bool = False


class Redrive:
    """Answers requests. `reached`: the offsets the store has applied up to, by partition."""

    def __init__(self, config: Config, topics: TableTopics, parked: Parked, reached: Mapping[Partition, int]) -> None:
        self._config = config
        self._topics = topics
        self._parked = parked
        self._reached = reached
        self.ready: dict[DeadLetter, Found] = {}  # looked at, to be applied or closed

    async def prepare(self) -> None:
        """Step 1 of what was asked for and lies in partitions of ours, for ever. Raises KafkaError."""
        while True:
            await self._parked.requested.wait()
            self._parked.requested.clear()
            wanted = [
                letter
                for letter in self._parked.open.requested.values()
                if letter.position and self._reached.get(letter.place, 0) > letter.offset and letter not in self.ready
            ]
            try:
                self.ready |= await self._look(wanted)
            except KafkaError as error:
                if not error.retriable:
                    raise
                LOG.info("a redrive waits", reason=str(error))  # the next look at the letters asks again

    async def answer(self, apply: Apply, store: Store, insist: Insistence) -> None:
        """Steps 2 to 4 of what is `ready`. What fails stays `ready`, and is done in a later round."""
        if not self.ready:
            return
        ready = dict(self.ready)
        still_open = [letter for letter in ready if self._parked.open.get(letter.id) == letter]
        outcomes = {letter: await self._applied(letter, ready[letter], apply) for letter in still_open}
        await insist("flushing", lambda: store.flush(force=True))
        settled = {letter: outcome for letter, outcome in outcomes.items() if outcome is not None}
        await insist("closing dead letters", lambda: self._parked.settle(settled))
        for letter in ready:
            self._parked.open.requested.pop(letter.id, None)
            del self.ready[letter]

    async def _applied(self, letter: DeadLetter, found: Found, apply: Apply) -> Outcome | None:
        """None when the store refuses it again: the letter that is written then is the answer."""
        if found.newer or found.record is None:
            return "superseded"
        applied = await apply(Batch(*self._topics.split(letter.topic), letter.topic, [found.record], {}))
        if applied.rejected:
            return None
        return "superseded" if applied.stale else "redriven"

    async def _look(self, letters: Sequence[DeadLetter]) -> dict[DeadLetter, Found]:
        found = {letter: Found() for letter in letters}
        of_place: defaultdict[Partition, list[DeadLetter]] = defaultdict(list)
        for letter in letters:
            of_place[letter.place].append(letter)
        spans = {p: Span(min(letter.offset for letter in of), self._reached[p]) for p, of in of_place.items()}
        if not spans:
            return found
        async with Replayer(self._config) as replayer:
            starts = await replayer.starts(list(spans))
            spans = {p: Span(max(starts[p], span.start or 0), span.end) for p, span in spans.items()}
            async for place, messages, _reached in replayer.read(spans):
                _note(messages, {letter.key or b"": letter for letter in of_place[place]}, found)
        return found


def _note(messages: Sequence[Message], by_key: Mapping[bytes, DeadLetter], found: Mapping[DeadLetter, Found]) -> None:
    for record in to_records(messages)[0]:
        if record.key in MARKER_KEYS:
            below = marker_below(record)
            for each in by_key.values():
                found[each].newer |= record.offset > each.offset and each.position < below
            continue
        letter = by_key.get(record.key)
        if letter is not None and record.position > letter.position:
            found[letter].newer = True
        elif letter is not None and record.position == letter.position:
            found[letter].record = record
