"""Where a snapshot chunk belongs among the stream: by watermarks and visibility, never by LSNs.

A chunk is read between two transactional messages, low and high (DBLog, Andreakis & Papapanagiotou 2020), in one
REPEATABLE READ snapshot S. Its rows are emitted as if they were the changes of the high message's own transaction,
so that they have a position, and less the keys that the stream touched between low and high. That is exact for this
reason:
- a transaction visible in S committed before the high message, so its changes were delivered before the rows;
- one not visible in S that the stream delivers after low has its keys dropped from the chunk: the stream's row is
  newer;
- one not visible in S but delivered *before* low: its commit record was written, but it was still in the list of
  running transactions when S was taken. It is found by its xid, which S does not see, and the chunk is read again.

That a key has no row in S is placed in the same way, as a delete.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from cdc.kafka.block import Rows
from cdc.source.events import Fragment, Table
from cdc.source.visibility import Shot

Name = tuple[str, str]
# xids remembered: those delivered between a commit record and the end of its transaction, a matter of milliseconds
# (of a standby's answer with synchronous replication); 100,000 transactions are seconds at the very least.
REMEMBERED = 100_000
# keys a window keeps, some 100 MB: a chunk during whose reading so much is written is read again, and a low message
# whose high never comes (its reader was killed, or somebody else wrote it) does not grow for ever
MOST_KEYS = 1_000_000


@dataclass(slots=True)
class Chunk:
    """Rows of one table read in one snapshot, `shot`."""

    id: str
    name: Name
    table: Table
    rows: Rows
    shot: Shot
    last_key: list[str] | None  # text of the last row's key, None when the table ends here
    final: bool  # nothing of the table comes after it
    whole: bool  # False: cut by its size, the rest of its span follows
    gone: Sequence[list[Fragment]] = ()  # keys asked for that have no row, as a delete's old row


@dataclass(slots=True)
class Window:
    """A chunk being read: keys the stream touched since its low message."""

    name: Name
    low_at: int  # number of transactions delivered before low
    keys: set[bytes] = field(default_factory=set)
    truncated: bool = False  # or touched too often: the chunk is to be read again


class Windows:
    """All open windows, and the xids delivered lately."""

    def __init__(self) -> None:
        self._open: dict[str, Window] = {}
        self._delivered: OrderedDict[int, int] = OrderedDict()
        self._count = 0
        self.by_table: dict[Name, list[Window]] = {}

    def delivered(self, xid: int) -> None:
        """A source transaction reached the reader."""
        self._count += 1
        self._delivered[xid] = self._count
        self._delivered.move_to_end(xid)
        if len(self._delivered) > REMEMBERED:
            self._delivered.popitem(last=False)

    def low(self, chunk_id: str, name: Name) -> None:
        """The low message arrived."""
        window = self._open[chunk_id] = Window(name, self._count)
        self.by_table.setdefault(name, []).append(window)

    def touch(self, name: Name, key: bytes) -> None:
        """The stream changed a key."""
        for window in self.by_table.get(name, ()):
            if len(window.keys) < MOST_KEYS:
                window.keys.add(key)
            else:
                window.truncated = True

    def truncate(self, name: Name) -> None:
        """The stream emptied a table."""
        for window in self.by_table.get(name, ()):
            window.truncated = True

    def high(self, chunk_id: str) -> Window | None:
        """The high message arrived: closes the window; None for a chunk of an earlier run."""
        window = self._open.pop(chunk_id, None)
        if window is not None:
            self.by_table[window.name].remove(window)
            if not self.by_table[window.name]:
                del self.by_table[window.name]
        return window

    def raced(self, window: Window, shot: Shot) -> bool:
        """True when the chunk's snapshot missed a transaction that the stream delivered before low."""
        if any(self._delivered.get(xid, window.low_at + 1) <= window.low_at for xid in shot.running):
            return True
        return any(at <= window.low_at and shot.beyond(xid) for xid, at in self._delivered.items())
