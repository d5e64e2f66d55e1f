"""The progress record: up to where the topics hold everything, written in the same transaction as the data."""

from __future__ import annotations

import msgspec

from cdc.errors import DecodeError
from cdc.position import Position


class SnapshotState(msgspec.Struct, frozen=True):
    """A table's snapshot. `after`: JSON array of the last key (as PostgreSQL text) up to which all chunks are in
    Kafka, None at the beginning; `rows` counts those written."""

    done: bool = False
    after: list[str] | None = None
    rows: int = 0


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at or below `(epoch, commit_lsn, ordinal)` is in Kafka. `complete` False: the transaction at
    `commit_lsn` was cut after `ordinal`. `end_lsn` is the feedback for the slot: the end of the last whole transaction."""

    source: str
    slot: str
    system_id: str
    timeline: int
    epoch: int
    commit_lsn: int = 0
    ordinal: int = 0
    complete: bool = True
    end_lsn: int = 0
    commit_us: int = 0
    snapshots: dict[str, SnapshotState] = {}

    @property
    def position(self) -> Position:
        """The newest position in Kafka."""
        return Position(self.epoch, self.commit_lsn, self.ordinal)


_DECODER = msgspec.json.Decoder(Progress)


def encode_progress(progress: Progress) -> bytes:
    """JSON, for the progress topic."""
    return msgspec.json.encode(progress)


def decode_progress(value: bytes) -> Progress:
    """Raises DecodeError."""
    try:
        return _DECODER.decode(value)
    except msgspec.DecodeError as error:
        raise DecodeError(
            f"not a progress record: {error}", hint="is the progress topic shared with another program?"
        ) from error
