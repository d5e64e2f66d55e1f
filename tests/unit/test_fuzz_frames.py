"""Frames of both plugins, broken in every way, a whole stream at a time: typed errors only, without a row's value."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest

from cdc.assembler import Assembler
from cdc.assembly import Assembly
from cdc.config import parse
from cdc.envelope import POSITION_HEADER
from cdc.errors import CdcError
from cdc.kafka.partitioner import partitions
from cdc.kafka.progress import Progress
from cdc.position import decode_position
from cdc.source.rows import Origin
from tests.chance import seeded
from tests.decoding import decoder
from tests.unit.frames.record import FOLDER, RecordedCatalog, recorded
from tests.unit.fuzzing import INPUTS, confuse, frugal, guarded, mutate

SHARE = 3  # of all inputs: a third for each plugin, the rest in test_fuzz_records
CONFIG = parse({"postgres": {"dsn": "", "tables": ["public.*"]}, "kafka": {"bootstrap": "none", "transaction_rows": 3}})
SECRET = "long long"  # of the rows recorded


class Stream:
    """Streams of one plugin: the recorded one, with frames changed, dropped, doubled and exchanged."""

    def __init__(self, plugin: str, rng: random.Random) -> None:
        self._plugin, self._rng = plugin, rng
        self.frames, _ = recorded(plugin)
        self._answers = json.loads((FOLDER / f"{plugin}.json").read_text())["answers"]
        self.outcomes: Counter[str] = Counter()
        self.told: list[str] = []

    def play(self) -> int:
        """One stream through a decoder and an assembler of its own; returns how many frames."""
        decoding: Any = decoder(self._plugin, RecordedCatalog(self._answers, None, CONFIG))
        progress = Progress(source="m", slot="s", system_id="1", timeline=1, epoch=1)
        assembler = Assembler(CONFIG, Origin("m", "db", 1), progress, lambda content: None)
        frames = self._broken()
        self.told.clear()
        for frame in frames:
            self._feed(decoding, assembler, frame)
        assert not any(SECRET in text for text in self.told), "an error tells a row's value"
        return len(frames)

    def _broken(self) -> list[bytes]:
        rng, frames = self._rng, []
        for frame in self.frames * 3:
            kind = rng.random()
            if kind < 0.35:
                frames.append(frame)
            elif kind < 0.7:
                frames.append(mutate(rng, self.frames))
            elif kind < 0.9:
                frames.append(confuse(rng, self.frames))
            elif kind < 0.95 and frames:
                frames.insert(int(rng.random() * len(frames)), frame)
        return frames

    def _feed(self, decoding: Any, assembler: Assembler, frame: bytes) -> None:
        try:
            event = decoding.decode(frame)
            if event is not None:
                assembler.add(event)
                if assembler.full:
                    check(assembler.take())
        except CdcError as error:
            self.outcomes[type(error).__name__] += 1
            self.told.append(str(error))
        else:
            self.outcomes["event" if event is not None else "nothing"] += 1


def check(chunk: Assembly) -> None:
    """What did get through has a position in its wire form, and can be cut into partitions."""
    for records in chunk.records.values():
        for key, _value, _timestamp, headers in records:
            if headers:  # else it waits to be filled
                decode_position(dict(headers)[POSITION_HEADER])
            assert partitions([key], 12)[0] < 12


@pytest.mark.parametrize("plugin", ["wal2json", "pgoutput"])
def test_broken_streams(plugin: str) -> None:
    stream = Stream(plugin, seeded(plugin))
    done = 0
    with frugal():
        while done < INPUTS // SHARE:
            with guarded():
                done += stream.play()
    print(f"{done:,} frames of {plugin}: {dict(stream.outcomes)}")
    assert stream.outcomes["DecodeError"] > done / 10
    assert stream.outcomes["event"] > done / 10
