"""wal2json's runs: learnt from the first insert or update of a table that went the ordinary way (see runs.py)."""

from __future__ import annotations

from collections.abc import Sequence

from cdc.source.events import Run
from cdc.source.runs import COMPILED, Item, wal2json_run
from cdc.source.wal2json_rows import Shape

_ACTION = len(b'{"action":"')  # wal2json writes the action first
_OPS = {ord("I"): b"c", ord("U"): b"u"}
SCHEMA = b',"schema":"'  # no name can contain it: inside a JSON string its quotes would be escaped
COLUMNS = b',"columns":[{'


class Runs:
    """By action, and schema and table as the message writes them."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, bytes], Run] = {}
        self._shapes: dict[tuple[int, bytes], tuple[Shape, Shape | None]] = {}  # what each was learnt from

    def clear(self) -> None:
        """A table may have changed: everything is learnt anew."""
        self._known.clear()
        self._shapes.clear()

    def find(self, payload: bytes) -> Run | None:
        """The run that may take the message."""
        if not self._known or len(payload) <= _ACTION:
            return None
        return self._known.get((payload[_ACTION], named(payload)))

    def learn(
        self,
        payload: bytes,
        columns: Sequence[Item],
        shape: Shape,
        identity: Sequence[Item] = (),
        old: Shape | None = None,
    ) -> None:
        """From a whole row whose key did not change. `identity` and `old` are an update's."""
        action, name = payload[_ACTION], named(payload)
        if not COMPILED or not name or self._shapes.get((action, name)) == (shape, old):
            return
        for each in _OPS:  # of an older layout
            known = self._known.get((each, name))
            if known is not None and known.layout.table is not shape.table:
                del self._known[each, name], self._shapes[each, name]
        if not shape.whole or any(way.how == "call" for way in shape.key_ways):
            return
        self._shapes[action, name] = shape, old
        places = old.targets if old is not None else []
        same = [place if place in shape.table.key else -1 for place in places]
        pairs = list(zip(identity, same, strict=True))
        self._known[action, name] = wal2json_run(_OPS[action], shape.table, name, columns, shape.ways, pairs)


def named(payload: bytes) -> bytes:
    """The part of a message that says of which table it is; empty when it does not show columns."""
    at = payload.find(SCHEMA)
    end = payload.find(COLUMNS, at)
    return payload[at:end] if 0 <= at < end else b""
