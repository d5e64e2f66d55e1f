"""The newest version of every key, as the topic has it: what verify holds a store's own versions against.

Of a key 64 bits are kept, of its version another 64 beside the position: 32 bytes a key, 32 MB a million. Hashes are
this process' own. One key in 10^7 shares its bits with another when there are a million, and is then looked at in vain.
The topic is read once from its beginning, some seconds a million records, and from there on what came since.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np
import numpy.typing as npt

from cdc.config import Config
from cdc.envelope import MARKER_KEYS
from cdc.position import ZERO
from consumers.batches import Message, marker_below, to_records
from consumers.replay import Replayer, Span, span_ends
from consumers.stamps import GONE, Noted, stamp_hash
from consumers.store import Offsets, Partition, Record

FOLDED = 500_000  # records between two times that only the newest of each key is kept
_ROW = np.dtype([("key", "<i8"), ("high", "<u8"), ("low", "<u8"), ("stamp", "<i8")])

Rows = npt.NDArray[np.void]
Stamp = Callable[[Record], bytes]


class Latest:
    """One table's topic. `stamp` makes of a record what a store keeps as its version, b"" for a delete. Use as an async
    context manager."""

    def __init__(self, config: Config, schema: str, table: str, stamp: Stamp) -> None:
        self._config, self._stamp = config, stamp
        self._topic = f"{config.kafka.prefix}.{schema}.{table}"
        self._replayer = Replayer(config)
        self._partitions: Sequence[Partition] = ()
        self._reached: Offsets = {}
        self._rows = np.empty(0, _ROW)
        self._fresh: dict[int, Noted] = {}  # since the last fold
        self._floor = ZERO.encode()

    async def __aenter__(self) -> Latest:
        """Reads the topic. Raises KafkaError, DecodeError."""
        self._partitions = list(await span_ends(self._config, [self._topic]))
        await self._replayer.__aenter__()
        try:
            await self._load()
        except BaseException:
            await self._replayer.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._replayer.__aexit__(*error)

    async def advance(self) -> None:
        """Reads what came since. Raises KafkaError, DecodeError."""
        async for records in self._since():
            for row in self._rows_of(records).tolist():
                self._note(*row)
        if len(self._fresh) > FOLDED:
            self._fold()

    def of(self, keys: Sequence[bytes]) -> list[Noted | None]:
        """Of each key; None for one that was never written, or is deleted."""
        found = [self._fresh.get(key) or self._base(key) for key in map(hash, keys)]
        return [None if one is None or one.stamp == GONE or one.position < self._floor else one for one in found]

    def stamps(self, keys: Sequence[bytes]) -> list[int]:
        """The stamps' hashes, GONE for none; fast, and does not look at what a TRUNCATE removed."""
        hashes = np.fromiter(map(hash, keys), np.int64, len(keys))
        found = [GONE] * len(keys)
        if len(self._rows):
            rows = self._rows[np.minimum(np.searchsorted(self._rows["key"], hashes), len(self._rows) - 1)]
            found = np.where(rows["key"] == hashes, rows["stamp"], GONE).tolist()
        if self._fresh:
            for place, key in enumerate(hashes.tolist()):
                if (noted := self._fresh.get(key)) is not None:
                    found[place] = noted.stamp
        return found

    def _fold(self) -> None:
        made = [(key, *_halves(noted.position), noted.stamp) for key, noted in self._fresh.items()]
        self._rows = _newest([self._rows, np.array(made, _ROW)])
        self._fresh.clear()

    async def _load(self) -> None:
        pieces, waiting = [self._rows], 0
        async for records in self._since():
            pieces.append(self._rows_of(records))
            waiting += len(pieces[-1])
            if waiting > FOLDED:
                pieces, waiting = [_newest(pieces)], 0
        self._rows = _newest(pieces)

    async def _since(self) -> AsyncIterator[list[Record]]:
        ends = await self._replayer.ends(self._partitions)
        spans = {p: Span(self._reached.get(p), end) for p, end in ends.items() if end > self._reached.get(p, 0)}
        async for _partition, messages, _end in self._replayer.read(spans):
            yield self._records(messages)
        self._reached = ends

    def _records(self, messages: Sequence[Message]) -> list[Record]:
        records, _foreign = to_records(messages)
        for record in records:
            if record.key in MARKER_KEYS:
                self._floor = max(self._floor, marker_below(record))
        return [record for record in records if record.key not in MARKER_KEYS]

    def _rows_of(self, records: Sequence[Record]) -> Rows:
        rows = np.empty(len(records), _ROW)
        rows["key"] = [hash(record.key) for record in records]
        places = np.frombuffer(bytes.fromhex(b"".join(r.position for r in records).decode()), ">u8").reshape(-1, 2)
        rows["high"], rows["low"] = places[:, 0], places[:, 1]
        rows["stamp"] = [stamp_hash(self._stamp(record)) for record in records]
        return rows

    def _note(self, key: int, high: int, low: int, stamp: int) -> None:
        position = _wire(high, low)
        other = self._fresh.get(key) or self._base(key)
        if other is None or position >= other.position:
            self._fresh[key] = Noted(position, stamp)

    def _base(self, key: int) -> Noted | None:
        place = int(np.searchsorted(self._rows["key"], key))
        if place == len(self._rows) or self._rows["key"][place] != key:
            return None
        _key, high, low, stamp = self._rows[place].tolist()
        return Noted(_wire(high, low), stamp)


def _newest(pieces: Sequence[Rows]) -> Rows:
    """Of each key the row of the newest position, by key; of equal positions the last."""
    rows = np.concatenate(pieces)
    rows = rows[np.lexsort((rows["low"], rows["high"], rows["key"]))]
    last = np.ones(len(rows), np.bool_)
    last[:-1] = rows["key"][1:] != rows["key"][:-1]
    return rows[last]


def _wire(high: int, low: int) -> bytes:
    return b"%016x%016x" % (high, low)


def _halves(position: bytes) -> tuple[int, int]:
    return int(position[:16], 16), int(position[16:], 16)
