"""What lies in a store's dead-letter topic, and which letters are still open.

Three kinds of records, told apart by the header `cdc.dlq.kind`. A letter is the record as it was (key, value, position
and version headers) and, in headers, why and from where. A request asks the consumer to redrive a letter; a closing
says that it is settled, and how. Both name their letter by its headers. Nothing is ever removed: the topic is also the
history, and reading it from the beginning yields what is open.

A letter is the same one when topic, partition, offset and position are: a replay writes it again, which changes
nothing, or opens it again when it was closed (a refilled store has to refuse it anew). Of a key only the newest letter
is open: every record holds the whole row, so that a newer one settles all before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Literal, NamedTuple

from cdc import log
from cdc.config import Config
from cdc.dead_letter import CLOSING, KIND, MESSAGE, OFFSET, OUTCOME, PARTITION, REASON, REQUEST, STORE, TIME, TOPIC
from cdc.envelope import POSITION_HEADER, VERSION_HEADER, header
from cdc.errors import DecodeError
from cdc.position import decode_position
from consumers.batches import Message
from consumers.replay import Span, replay, span_ends
from consumers.store import Partition

LOG = log.get(__name__)

Outcome = Literal["redriven", "superseded", "discarded"]
Headers = list[tuple[str, bytes]]

DIGITS = 19  # of a 64-bit number
_HINT = "is the dead-letter topic written by another program too?"


class DeadLetter(NamedTuple):
    """One letter as it lies in the topic; `position` is the record's wire form, empty for a record not of ours."""

    key: bytes | None
    value: bytes | None
    reason: str
    message: str
    store: str
    topic: str
    partition: int
    offset: int
    position: bytes
    vector: bytes
    time_ms: int

    @property
    def id(self) -> str:
        """What requests and closings name it by."""
        return f"{self.topic}:{self.partition}:{self.offset}:{self.position.decode()}"

    @property
    def place(self) -> Partition:
        """Where its record lies."""
        return self.topic, self.partition


class Request(NamedTuple):
    """Somebody wants the letter to be redriven."""

    id: str
    time_ms: int


class Closing(NamedTuple):
    """The letter is settled."""

    id: str
    outcome: str
    time_ms: int


Entry = DeadLetter | Request | Closing


def parse(message: Message) -> Entry | None:
    """One record of the topic; None for one that is not ours. It holds no row of ours: passing it over loses nothing,
    while stopping at it would be for good."""
    try:
        kind = dict(message.headers).get(KIND)
        letter = _letter(message)
        if kind is None:
            return letter
        if kind == REQUEST:
            return Request(letter.id, letter.time_ms)
        if kind == CLOSING:
            return Closing(letter.id, header(message.headers, OUTCOME).decode(), letter.time_ms)
    except (DecodeError, ValueError):  # UnicodeDecodeError is one
        pass
    LOG.warning("a record among the dead letters is not ours", topic=message.topic, offset=message.offset)
    return None


def _letter(message: Message) -> DeadLetter:
    position = header(message.headers, POSITION_HEADER)
    if position:  # empty for a record that was not ours
        decode_position(position)
    return DeadLetter(
        key=message.key,
        value=message.value,
        reason=_text(message, REASON),
        message=_text(message, MESSAGE),
        store=_text(message, STORE),
        topic=_text(message, TOPIC),
        partition=_number(message, PARTITION),
        offset=_number(message, OFFSET),
        position=position,
        vector=header(message.headers, VERSION_HEADER),
        time_ms=_number(message, TIME),
    )


def _text(message: Message, name: str) -> str:
    try:
        return header(message.headers, name).decode()
    except UnicodeDecodeError as error:
        raise DecodeError(f"a dead letter's header {name} is not UTF-8", hint=_HINT) from error


def _number(message: Message, name: str) -> int:
    text = _text(message, name).removeprefix("-")  # a record that never came to the topic has the offset -1
    if not text.isascii() or not text.isdigit() or len(text) > DIGITS:
        raise DecodeError(f"a dead letter's header {name} is no number", hint=_HINT)
    return int(header(message.headers, name))


def headers_of(letter: DeadLetter, *more: tuple[str, bytes]) -> Headers:
    """The headers of a letter, or of what speaks of it (`more` then says how)."""
    return [
        (POSITION_HEADER, letter.position),
        (VERSION_HEADER, letter.vector),
        (REASON, letter.reason.encode()),
        (MESSAGE, letter.message.encode()),
        (STORE, letter.store.encode()),
        (TOPIC, letter.topic.encode()),
        (PARTITION, b"%d" % letter.partition),
        (OFFSET, b"%d" % letter.offset),
        (TIME, b"%d" % letter.time_ms),
        *more,
    ]


class OpenLetters:
    """Feed it every entry in order. `parked`: topic → key → its open letter; `foreign`: by id, records not of ours."""

    def __init__(self) -> None:
        self.parked: defaultdict[str, dict[bytes, DeadLetter]] = defaultdict(dict)
        self.foreign: dict[str, DeadLetter] = {}
        self.requested: dict[str, DeadLetter] = {}
        self._by_id: dict[str, DeadLetter] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[DeadLetter]:
        return iter(self._by_id.values())

    def get(self, id: str) -> DeadLetter | None:
        """The open letter of that id."""
        return self._by_id.get(id)

    def add(self, entry: Entry) -> DeadLetter | None:
        """Returns the letter it leaves settled without a closing: the older one of the same key."""
        if isinstance(entry, DeadLetter):
            return self._file(entry)
        letter = self._by_id.get(entry.id)
        if letter is not None:
            if isinstance(entry, Request):
                self.requested[letter.id] = letter
            else:
                self.close(letter)
        return None

    def _file(self, letter: DeadLetter) -> DeadLetter | None:
        self.requested.pop(letter.id, None)  # the answer to a request: refused again
        if not letter.position:
            self.foreign[letter.id] = self._by_id[letter.id] = letter
            return None
        of_topic, key = self.parked[letter.topic], letter.key or b""
        held = of_topic.get(key)
        if held is not None and held.position > letter.position:
            return letter
        if held is not None:
            self.close(held)
        of_topic[key] = self._by_id[letter.id] = letter
        return held if held is not None and held.id != letter.id else None

    def close(self, letter: DeadLetter) -> None:
        """It is settled."""
        self.requested.pop(letter.id, None)
        self._by_id.pop(letter.id, None)
        self.foreign.pop(letter.id, None)
        of_topic, key = self.parked[letter.topic], letter.key or b""
        if key in of_topic and of_topic[key].id == letter.id:
            del of_topic[key]


async def read_entries(config: Config, store: str) -> AsyncIterator[Entry]:
    """Everything in a store's dead-letter topic, oldest first; none when there is no topic yet. Raises KafkaError."""
    topic = config.kafka.dead_letter_topic(store)
    ends = await span_ends(config, [topic])
    async for messages in replay(config, {partition: Span(None, end) for partition, end in ends.items()}):
        for message in messages:
            entry = parse(message)
            if entry is not None:
                yield entry


async def read_dead_letters(config: Config, store: str) -> AsyncIterator[DeadLetter]:
    """Every letter of a store, oldest first, open or not. Raises KafkaError."""
    async for entry in read_entries(config, store):
        if isinstance(entry, DeadLetter):
            yield entry
