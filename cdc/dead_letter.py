"""The header names of dead letters, which the reader and the consumers write alike; see `consumers.letters`."""

from __future__ import annotations

from typing import Final

KIND: Final = "cdc.dlq.kind"  # absent on letters
REASON: Final = "cdc.dlq.reason"
MESSAGE: Final = "cdc.dlq.message"
STORE: Final = "cdc.dlq.store"  # who refused it: a store, or `reader`
TOPIC: Final = "cdc.dlq.topic"
PARTITION: Final = "cdc.dlq.partition"
OFFSET: Final = "cdc.dlq.offset"
TIME: Final = "cdc.dlq.time"  # Unix milliseconds
OUTCOME: Final = "cdc.dlq.outcome"

CLOSING: Final = b"closing"
REQUEST: Final = b"request"
READER: Final = "reader"
NOWHERE: Final = -1  # partition and offset of a record that was never written
