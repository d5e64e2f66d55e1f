"""Building another index in the background and putting it in the place of the live one.

Exact beyond `flat_limit` becomes partitioned, partitioned below half of it becomes exact again (half, so that a size
that wavers around the limit does not build for ever), and a partitioned one that drifted is trained anew. Meanwhile
searches and changes go on in the old one; ids that change are remembered and carried over at the end. It takes the
memory of a second copy of the vectors, and its threads.
"""

from __future__ import annotations

from concurrent.futures import Executor, Future
from functools import partial

from cdc import log, metrics
from cdc.config import Faiss
from cdc.errors import StoreError
from consumers.faiss.arrays import Ids, Vectors
from consumers.faiss.content import Content
from consumers.faiss.flat import FlatIndex
from consumers.faiss.index import Kind, VectorIndex
from consumers.faiss.ivf import IvfIndex, train
from consumers.faiss.metric import Metric

LOG = log.get(__name__)


class Training:
    """One at a time. `consider` and the exchange run in the writer's thread, the building in the background."""

    def __init__(self, settings: Faiss, content: Content, writer: Executor, background: Executor) -> None:
        self._settings = settings
        self._content = content
        self._writer = writer
        self._background = background
        self.running: Future[None] | None = None

    def consider(self) -> None:
        """Starts one when the index asks for it. Raises StoreError when the last one failed."""
        if self.running is not None and self.running.done():
            running, self.running = self.running, None
            error = running.exception()
            if error is not None:
                raise StoreError(f"training the index failed: {error}", hint="see the log; is memory short?") from error
        if self.running is None and self._content.index is not None:
            wanted = self._wanted(self._content.index)
            if wanted:
                self._start(self._content.index, *wanted)

    def _wanted(self, index: VectorIndex) -> tuple[Kind, str] | None:
        limit = self._settings.flat_limit
        if not isinstance(index, IvfIndex):
            return ("ivf", "size") if index.size > limit else None
        if 2 * index.size < limit:
            return "flat", "size"
        reason = index.drifted(self._settings.retrain_growth, self._settings.retrain_imbalance)
        return ("ivf", reason) if reason else None

    def _start(self, index: VectorIndex, kind: Kind, reason: str) -> None:
        LOG.info("building an index beside the live one", kind=kind, reason=reason, count=index.size)
        self.running = Future()
        self._content.touched = set()
        ids, vectors = index.dump()  # nobody changes it meanwhile: this is the thread that would
        built = self._background.submit(build, kind, ids, vectors, self._content.metric)
        built.add_done_callback(partial(self._hand_over, self.running))

    def _hand_over(self, running: Future[None], built: Future[VectorIndex]) -> None:
        try:
            self._writer.submit(self._install, running, built)
        except RuntimeError as closed:  # the store was closed meanwhile
            running.set_exception(closed)

    def _install(self, running: Future[None], built: Future[VectorIndex]) -> None:
        try:
            self._content.replace(built.result())
            metrics.INDEX_RETRAINS.labels(self._content.label).inc()
            LOG.info("the index was exchanged", kind=built.result().kind, count=built.result().size)
            running.set_result(None)
        except Exception as error:  # noqa: BLE001 - kept, and raised by the next change
            self._content.touched = None
            running.set_exception(error)


def build(kind: Kind, ids: Ids, vectors: Vectors, metric: Metric) -> VectorIndex:
    """An index of these vectors."""
    if kind == "ivf":
        return train(ids, vectors, metric)
    flat = FlatIndex(vectors.shape[1], metric)
    flat.put(ids, vectors)
    return flat
