"""Dead letters into `cdc.letters`, so that who speaks SQL sees which rows wait: what the topics say, each entry once.

The topics stay the truth. A letter is open until its topic says otherwise, or a newer one of its key is filed
(`consumers.letters`); for that the whole topic is read once after a start, and from there on what is new.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, get_args

import msgspec

from cdc import log
from cdc.commands.asking import translated
from cdc.commands.gateway_control import keep
from cdc.config import Config
from cdc.control import incidents
from cdc.control.incidents import Letter
from cdc.kafka.topics import STORES
from cdc.topic_ids import topic_ids
from consumers.letters import Closing, DeadLetter, Entry, OpenLetters, Outcome, parse
from consumers.replay import Replayer, Span, span_ends
from consumers.topics import TableTopics

LOG = log.get(__name__)

ROUND_SECONDS = 5.0  # as long a row may be called there that waits as a dead letter
MOST_MS = 253_402_300_799_000  # the end of the year 9999
Changes = list[tuple[int, Letter]]  # by the offset of the entry that says so


@dataclass
class _Read:
    """One topic, as far as it was read."""

    log: str
    next_offset: int = 0
    open: OpenLetters = field(default_factory=OpenLetters)


class Mirror:
    """Run `round` every ROUND_SECONDS beside the gateway."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._topics = TableTopics(config.kafka.prefix, config.postgres.tables)
        self._read: dict[str, _Read] = {}

    async def round(self) -> None:
        """Once. Raises ConnectError, StoreError."""
        await translated(self._config, self._round())

    async def _round(self) -> None:
        kafka = self._config.kafka
        topics = {kafka.dead_letter_topic(store): store for store in STORES}
        ends = await span_ends(self._config, topics)
        logs = await topic_ids(kafka, {topic for topic, _number in ends})
        async with Replayer(self._config) as replayer:
            for (topic, _number), end in sorted(ends.items()):
                await self._mirror(replayer, topics[topic], logs.get(topic, ""), end)

    async def _mirror(self, replayer: Replayer, store: str, log: str, end: int) -> None:
        """Of one store; after a failure all of it is read again."""
        read = self._read.pop(store, None)
        if read is None or read.log != log:
            read = _Read(log)
        changes = await self._new(replayer, store, read, end)
        await asyncio.to_thread(
            keep, self._config, lambda connection: incidents.take_in(connection, store, log, changes, end)
        )
        read.next_offset = end
        self._read[store] = read

    async def _new(self, replayer: Replayer, store: str, read: _Read, end: int) -> Changes:
        found: Changes = []
        place = self._config.kafka.dead_letter_topic(store), 0
        async for _place, messages, _reached in replayer.read({place: Span(read.next_offset or None, end)}):
            for message in messages:
                entry = parse(message)
                if entry is not None:
                    found += [(message.offset, letter) for letter in self._changed(store, read.open, entry)]
        return found

    def _changed(self, store: str, known: OpenLetters, entry: Entry) -> list[Letter]:
        """The letters that are others by this entry."""
        if isinstance(entry, DeadLetter):
            older = known.add(entry._replace(value=None))
            closed = [] if older is None else self._letter(store, older, entry.time_ms, "superseded")
            return self._letter(store, entry) + closed
        letter = known.get(entry.id)
        known.add(entry)
        if isinstance(entry, Closing) and letter is not None and entry.outcome in get_args(Outcome):
            return self._letter(store, letter, entry.time_ms, entry.outcome)
        return []

    def _letter(
        self, store: str, letter: DeadLetter, closed_ms: int | None = None, outcome: Any = None
    ) -> list[Letter]:
        """As a row; none for one that no row can hold: some other program wrote it."""
        if not (letter.partition < 1 << 31 and letter.offset < 1 << 63 and letter.time_ms <= MOST_MS):
            LOG.warning("a letter that is not ours is not mirrored", store=store, reason="its numbers are too large")
            return []
        ours = letter.topic in self._topics
        return [Letter(
            id=letter.id, store=store, table=".".join(self._topics.split(letter.topic)) if ours else None,
            key=_key(letter.key), reason=letter.reason, message=letter.message.replace("\0", ""), topic=letter.topic,
            partition=letter.partition, offset=letter.offset, position=letter.position.decode() or None,
            refused_at=_time(letter.time_ms), closed_at=None if closed_ms is None else _time(closed_ms),
            outcome=outcome,
        )]  # fmt: skip


def _key(raw: bytes | None) -> Mapping[str, Any] | None:
    """None for what jsonb cannot hold, either."""
    try:
        found = msgspec.json.decode(raw or b"", type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return None if "\\u0000" in msgspec.json.encode(found).decode() else found


def _time(ms: int) -> datetime:
    return datetime.fromtimestamp(max(0, min(ms, MOST_MS)) / 1000, UTC)
