"""Named places at every durability boundary of both halves, where a test can end, stop or fail the process.

`CDC_FAILPOINTS="writer.before-commit=kill@3,redis.between-calls=stop"` arms them: the third time the process comes to
`writer.before-commit` it kills itself. Off, as always outside tests, a failpoint costs one look at an empty dictionary
(about 40 ns, a few times a chunk).

Actions: `kill` (SIGKILL, nothing is said to anybody), `stop` (SIGSTOP: a process that hangs, until SIGCONT), `error`
(ConnectError, as of a server that is away). The idea is FreeBSD's fail(9).
"""

from __future__ import annotations

import os
import re
import signal
import sys

from cdc.errors import ConfigError, ConnectError

VARIABLE = "CDC_FAILPOINTS"
POINTS = {
    # reader
    "reader.slot-created": "the slot is there, progress is not",
    "writer.before-produce": "a chunk is taken, nothing of it sent",
    "writer.after-produce": "all records are acknowledged, heartbeat and commit are not sent",
    "writer.before-commit": "everything is acknowledged but the commit",
    "writer.after-commit": "the chunk is durable, nobody has been told",
    "reader.before-feedback": "progress is durable, the slot not yet told",
    "reader.after-feedback": "the slot is told",
    "snapshot.chunk-read": "rows are read between the watermarks, the high one is not written",
    "snapshot.chunk-offered": "the high watermark is written, the chunk is not",
    "snapshot.chunk-written": "the chunk is durable, the next has not begun",
    "resync.slot-dropped": "the old slot is gone, the new one not made",
    "resync.slot-created": "the new slot is there, the new epoch's progress is not",
    "resync.written": "the new epoch has begun, no table is read yet",
    # consumers
    "consumer.polled": "records are fetched, none applied",
    "consumer.applied": "a batch is visible, its offsets not durable (FAISS) or durable with it (Redis)",
    "consumer.flushed": "offsets are durable in the store, not committed to the group",
    "consumer.committed": "offsets are committed",
    "redis.between-calls": "a part of a batch is visible",
    "redis.rekeyed": "a table has another key layout, the rows of the one before are not removed",
    "faiss.snapshot-begun": "the snapshot's folder exists under its temporary name, empty",
    "faiss.snapshot-written": "all files are on the disk, the folder still has its temporary name",
    "faiss.snapshot-renamed": "the snapshot has its name, the folder above is not synced",
    "faiss.pointer-written": "the new pointer lies beside the old one",
    # rebuild
    "rebuild.replaying": "the shadow is partly filled",
    "rebuild.before-swap": "the shadow is verified, the live store still serves",
    "rebuild.after-swap": "the shadow serves, the command has not said so",
}
_RULE = re.compile(r"(?P<name>[a-z.-]+)=(?P<action>kill|stop|error)(?:@(?P<hit>[1-9][0-9]*))?")


class _Armed:
    """One failpoint that does something at its `hit`-th passing, once."""

    def __init__(self, action: str, hit: int) -> None:
        self.action, self.left = action, hit

    def pass_by(self, name: str) -> None:
        self.left -= 1
        if self.left == 0:
            sys.stderr.write(f"failpoint {name}: {self.action}\n")
            sys.stderr.flush()
            _ACTIONS[self.action](name)


def parse(text: str) -> dict[str, _Armed]:
    """`name=action[@n]`, separated by commas. Raises ConfigError for anything else: a misspelt fault tests nothing."""
    armed = {}
    for rule in filter(None, text.split(",")):
        found = _RULE.fullmatch(rule)
        if found is None or found["name"] not in POINTS:
            raise ConfigError(
                f"{VARIABLE}: {rule!r} is no failpoint", hint=f"name=kill|stop|error[@n]; names: {', '.join(POINTS)}"
            )
        armed[found["name"]] = _Armed(found["action"], int(found["hit"] or 1))
    return armed


def failpoint(name: str) -> None:
    """Marks the place. Raises ConnectError when armed with `error`."""
    if _armed and name in _armed:
        _armed[name].pass_by(name)


def _kill(_name: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop(_name: str) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _fail(name: str) -> None:
    raise ConnectError(f"failpoint {name}", hint=f"unset {VARIABLE}")


_ACTIONS = {"kill": _kill, "stop": _stop, "error": _fail}
_armed = parse(os.environ.get(VARIABLE, ""))
