"""The model's snapshot of a table or of some keys: what `cdc.source.snapshot.SnapshotJob` does, one step at a time."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field

from cdc.assembler import Assembler
from cdc.kafka.block import Rows
from cdc.kafka.progress import Backfill, SnapshotState
from cdc.source.events import UNCHANGED
from cdc.source.runs import packed
from cdc.source.snapshot import TableSnapshot
from cdc.source.spans import Span
from cdc.source.window import Chunk
from tests.property.delivery.source import TABLES, Name, Source, fragments

LIMIT = 4  # rows of a span
WORKERS = 2


@dataclass
class Copying:
    """A worker with its span. `stage`: what comes next."""

    span: Span
    id: str = ""
    stage: str = "low"
    chunk: Chunk | None = None
    written: asyncio.Future[bool] | None = None


@dataclass
class Job:
    """Spans of one table, each copied between two watermarks. `id`: of a backfill, which is of some keys."""

    name: Name
    state: SnapshotState
    id: str = ""
    copying: list[Copying] = field(default_factory=list)
    numbers: int = 0

    def __post_init__(self) -> None:
        self.table = TableSnapshot(self.name, self.state, self.id)
        self.keys = {int(key) for (key,) in self.state.keys} if isinstance(self.state, Backfill) else None
        self.after, self.exhausted = self.state.after, self.state.done

    @property
    def over(self) -> bool:
        """Every chunk is durable."""
        return self.exhausted and not self.copying

    def step(self, which: int, source: Source, assembler: Assembler, *, cut: bool) -> bool:
        """The next step of one of the workers. `cut`: the chunk is ended early by its size."""
        if len(self.copying) < WORKERS and not self.exhausted and (which & 1 or not self.copying):
            self._begin(source)
            return True
        if not self.copying:
            return False
        worker = self.copying[which % len(self.copying)]
        if worker.stage == "low":
            worker.id = f"{id(self)}.{worker.span.number}.{source.lsn}"
            source.message(self._content("low", worker))
            worker.stage = "read"
        elif worker.stage == "read":
            worker.chunk = self._read(worker, source, cut)
            worker.stage = "high"
        elif worker.stage == "high":
            assert worker.chunk is not None
            worker.written = assembler.offer(worker.chunk, self.table, worker.span.number)
            source.message(self._content("high", worker))
            worker.stage = "wait"
        else:
            return self._answered(worker)
        return True

    def _begin(self, source: Source) -> None:
        rows = self._between(source, self.after, None)
        upto = [str(rows[LIMIT - 1])] if len(rows) >= LIMIT else None
        self.copying.append(Copying(Span(self.after, upto, self.numbers)))
        self.numbers += 1
        self.after, self.exhausted = upto, upto is None

    def _between(self, source: Source, after: list[str] | None, upto: list[str] | None) -> list[int]:
        low, high = int(after[0]) if after else -1, int(upto[0]) if upto else 1 << 30
        found = source.visible(self.name)[0]
        return sorted(key for key in found if low < key <= high and (self.keys is None or key in self.keys))

    def _read(self, worker: Copying, source: Source, cut: bool) -> Chunk:
        rows, shot = source.visible(self.name)
        keys = self._between(source, worker.span.after, worker.span.upto)
        cut = cut and len(keys) > 1
        keys = keys[: len(keys) // 2] if cut else keys
        final = worker.span.upto is None and not cut
        content = Rows.of(packed(TABLES[self.name], fragments(key, rows[key])) for key in keys)
        last = [str(keys[-1])] if keys else None
        gone = [[b"%d" % key, UNCHANGED] for key in sorted((self.keys or set()) - rows.keys())] if final else []
        return Chunk(worker.id, self.name, TABLES[self.name], content, shot, last, final, not cut, gone)

    def _answered(self, worker: Copying) -> bool:
        assert worker.written is not None
        assert worker.chunk is not None
        if not worker.written.done():
            return False
        if worker.written.result():
            if worker.chunk.whole:
                self.copying.remove(worker)
                return True
            worker.span = Span(worker.chunk.last_key, worker.span.upto, worker.span.number)
        worker.stage = "low"
        return True

    def _content(self, kind: str, worker: Copying) -> bytes:
        return json.dumps({"kind": kind, "chunk": worker.id, "table": self.name}).encode()
