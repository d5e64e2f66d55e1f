"""What `cdc dlq` reads from and writes to a store's dead-letter topic."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from cdc.config import Config
from cdc.errors import ConfigError
from consumers.dead_letters import DeadLetters
from consumers.letters import DeadLetter, Entry, OpenLetters, Request, parse, read_entries
from consumers.replay import Replayer, Span

LOOK_SECONDS = 0.2  # between two looks for answers
PARKED = "parked"
FOREIGN = "open"  # no key of ours is parked by it
UNANSWERED = "no answer yet: is its consumer running? The request stays, and is answered once it does"
NOT_OURS = "cannot be redriven: it is no record of ours; mend whoever wrote it, then `cdc dlq discard`"


@dataclass(eq=False)
class Filed:
    """A letter and what is known of it. `tries`: how often it was refused."""

    letter: DeadLetter
    tries: int = 0
    state: str = PARKED

    @property
    def open(self) -> bool:
        """Not settled."""
        return self.state in (PARKED, FOREIGN)


async def filed(config: Config, store: str, *, with_values: bool = False) -> list[Filed]:
    """Every letter ever written, by the time of its newest try. Raises KafkaError."""
    found: dict[str, Filed] = {}
    opened = OpenLetters()
    async for entry in read_entries(config, store):
        if isinstance(entry, DeadLetter):
            tries = found[entry.id].tries if entry.id in found else 0
            found.pop(entry.id, None)
            kept = entry if with_values else entry._replace(value=None)
            found[entry.id] = Filed(kept, tries + 1, PARKED if entry.position else FOREIGN)
            entry = entry._replace(value=None)
        elif not isinstance(entry, Request) and entry.id in found:
            found[entry.id].state = entry.outcome
        older = opened.add(entry)
        if older is not None:
            found[older.id].state = "superseded"
    return list(found.values())


def chosen(found: Sequence[Filed], keys: Sequence[str] | None, reason: str | None, every: bool) -> list[Filed]:
    """Open letters that fit all that was said. Raises ConfigError when nothing was."""
    if not (keys or reason or every):
        raise ConfigError(
            "it is not said which letters", hint="give --key, --reason or --all; `cdc dlq list` shows them"
        )
    return [
        each
        for each in found
        if each.open
        and (not keys or any(_is(each.letter, key) for key in keys))
        and reason in (None, each.letter.reason)
    ]


def _is(letter: DeadLetter, key: str) -> bool:
    raw = letter.key or b""
    try:
        parts = msgspec.json.decode(raw, type=dict[str, object])
    except msgspec.DecodeError:
        parts = {}
    values = [str(value) for value in parts.values()]
    pairs = [f"{name}={value}" for name, value in parts.items()]
    return key in (raw.decode(errors="replace"), letter.id, " ".join(pairs)) or [key] == values


async def redriven(config: Config, store: str, wanted: Sequence[Filed], wait_seconds: float) -> dict[Filed, str]:
    """Asks the store's consumer, and waits for its answers. Raises KafkaError."""
    results = {each: NOT_OURS if not each.letter.position else UNANSWERED for each in wanted}
    asked = {each.letter.id: each for each in wanted if each.letter.position}
    letters = DeadLetters(config, store)
    async with Replayer(config) as replayer:
        place = config.kafka.dead_letter_topic(store), 0
        start = (await replayer.ends([place]))[place]
        try:
            if asked:
                await letters.request([each.letter for each in asked.values()])
        finally:
            await letters.close()
        deadline = time.monotonic() + wait_seconds
        while UNANSWERED in results.values() and time.monotonic() < deadline:
            end = (await replayer.ends([place]))[place]
            async for _place, messages, _reached in replayer.read({place: Span(start, end)}):
                for message in messages:
                    _answer(parse(message), asked, results)
            start = end
            await asyncio.sleep(LOOK_SECONDS)
    return results


def _answer(entry: Entry | None, asked: Mapping[str, Filed], results: dict[Filed, str]) -> None:
    if entry is None or isinstance(entry, Request) or (each := asked.get(entry.id)) is None:
        return
    if isinstance(entry, DeadLetter):
        results[each] = f"refused again ({entry.reason}): {entry.message}"
    else:
        results[each] = entry.outcome


async def discarded(config: Config, store: str, wanted: Sequence[Filed]) -> dict[Filed, str]:
    """Closes them. Raises KafkaError."""
    letters = DeadLetters(config, store)
    try:
        await letters.close_letters({each.letter: "discarded" for each in wanted})
    finally:
        await letters.close()
    return dict.fromkeys(wanted, "discarded")
