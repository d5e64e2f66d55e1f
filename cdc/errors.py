"""The one error tree. Each error says what went wrong in one sentence and how to mend it.

    CdcError
    ├── ConfigError           a value in the configuration is wrong
    ├── ConnectError          a server cannot be reached or refuses us
    │   ├── LoginError        it refuses our name or password: waiting does not help
    │   └── AbsentError       what we need of it is not there yet: it is waited for, as a server is
    ├── PreconditionError     a server is reachable but not set up for us (doctor's findings)
    ├── GapError              changes are lost between slot and progress; only a resync mends it
    │   └── TopicsLost        the topics lost what was written; the tables have it, so that the reader may resync itself
    ├── DecodeError           bytes from the plugin, a topic or a snapshot file do not parse
    ├── StuckError            the source cannot show a change, again and again at the same place
    ├── RecordError           one record cannot be applied (it goes to the dead-letter topic)
    ├── StoreError            a store refuses or lost its data
    │   └── StoreLost         the store lost its state and is to be refilled by replay
    ├── TopicError            a topic is not as it has to be
    └── FencedError           a newer writer took over; this one has to stop

Only RecordError is ever survived by going on; all others stop the work and are shown to a person.
"""

from __future__ import annotations

import msgspec

# what decoding JSON raises for bytes that are none, are no UTF-8, have another shape, or nest without end
MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class CdcError(Exception):
    """What went wrong, and `hint`: the remedy, one sentence, for the person who reads it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} → {self.hint}" if self.hint else self.message


class ConfigError(CdcError):
    """A configuration value is missing or wrong; names field, value and rule."""


class ConnectError(CdcError):
    """A server is unreachable or refuses the credentials."""


class LoginError(ConnectError):
    """A server refuses the credentials. The process ends, where a server that is away is waited for."""


class AbsentError(ConnectError):
    """A server is there, and not yet what is needed of it: whoever makes it may come later than we."""


class PreconditionError(CdcError):
    """A server is reachable but not set up as the pipeline needs it."""


class GapError(CdcError):
    """Slot and progress disagree: changes between them are lost. Never continued silently."""


class TopicsLost(GapError):
    """The topics lack records that were in them. PostgreSQL still has what became of them."""


class DecodeError(CdcError):
    """Bytes do not parse; carries where."""


class StuckError(CdcError):
    """The output plugin fails at the same change every time; no retry gets past it."""

    reason = "undecodable"


class RecordError(CdcError):
    """A single record cannot be applied. `reason` is a constant label for metrics, e.g. `dimension`."""

    def __init__(self, reason: str, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class StoreError(CdcError):
    """A store refuses an operation."""


class StoreLost(StoreError):
    """The store's state is gone (flushed, swapped, damaged); the runtime refills it by replay."""


class TopicError(CdcError):
    """A topic's settings differ from what the pipeline needs; never altered silently."""


class FencedError(CdcError):
    """Another writer with the same identity took over; this process must not write again."""
