"""Spans of sampled transactions, over OTLP/HTTP. Loaded only when [tracing] endpoint is set; needs memory-cdc[trace].

The trace of a transaction is made from its position, so that no header has to travel: every process finds the same
trace id, the same parent and the same answer whether it is sampled (OpenTelemetry's TraceIdRatioBased) by itself.

    source.transaction   source commit → taken into a chunk   (reader)
      kafka.write        → durable in Kafka                   (reader)
        redis.apply      of one batch                         (a store's consumer)

A transaction cut into several chunks has one source.transaction, and a kafka.write a chunk.
"""

from __future__ import annotations

import atexit
import hashlib
import os
from collections.abc import Mapping
from functools import cache

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

from cdc import __version__

SOURCE, WRITE = "source.transaction", "kafka.write"
EXPORT_SECONDS = 3.0  # a collector that answers needs milliseconds; at the process's end that is waited for
SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SCOPE = InstrumentationScope("memory-cdc", __version__)


class Spans:
    """Of one process. Handing a span over costs microseconds; a thread of the SDK sends them, and drops what a
    collector does not take."""

    def __init__(self, endpoint: str, sample: float, source_name: str, process: str) -> None:
        self._source = source_name.encode()
        self._bound = round(sample * (1 << 64))
        self._resource = Resource.create({"service.name": "memory-cdc", "service.instance.id": process})
        self._processor = BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=EXPORT_SECONDS))
        atexit.register(self._processor.shutdown)

    def transaction(self, transaction: bytes, xid: int, begun: int, taken: int, durable: int, *, first: bool) -> None:
        """The reader's two; times in ns since the Unix epoch. `first`: no earlier chunk held a part of it."""
        trace = self._trace(transaction)
        if not self._sampled(trace):
            return
        about: dict[str, str | int] = {"cdc.transaction": transaction.decode(), "cdc.xid": xid}
        source = _context(trace, SOURCE)
        if first:
            self._end(SOURCE, source, None, begun, taken, about)
        write = _context(trace, WRITE) if first else _random(trace)
        self._end(WRITE, write, source, taken, durable, about)

    def applied(self, transaction: bytes, begun: int, ended: int, about: Mapping[str, str | int], store: str) -> None:
        """A store's part: one batch with records of the transaction."""
        trace = self._trace(transaction)
        if self._sampled(trace):
            about = {"cdc.transaction": transaction.decode(), **about}
            self._end(f"{store}.apply", _random(trace), _context(trace, WRITE), begun, ended, about)

    def flush(self) -> None:
        """Sends what waits."""
        self._processor.force_flush()

    def _trace(self, transaction: bytes) -> int:
        return int.from_bytes(hashlib.blake2b(transaction, digest_size=16, key=self._source).digest())

    def _sampled(self, trace: int) -> bool:
        return trace & 0xFFFF_FFFF_FFFF_FFFF < self._bound

    def _end(
        self, name: str, context: SpanContext, parent: SpanContext | None, start: int, end: int,
        about: Mapping[str, str | int],
    ) -> None:  # fmt: skip
        self._processor.on_end(
            ReadableSpan(
                name, context, parent, self._resource, about, kind=SpanKind.INTERNAL, start_time=min(start, end),
                end_time=end, instrumentation_scope=_SCOPE,
            )
        )  # fmt: skip


def _context(trace: int, name: str) -> SpanContext:
    """The span of that name that every process knows."""
    span = hashlib.blake2b(name.encode(), digest_size=8, key=trace.to_bytes(16)).digest()
    return SpanContext(trace, int.from_bytes(span), is_remote=False, trace_flags=SAMPLED)


def _random(trace: int) -> SpanContext:
    return SpanContext(trace, int.from_bytes(os.urandom(8)), is_remote=False, trace_flags=SAMPLED)


@cache
def spans(endpoint: str, sample: float, source_name: str, process: str) -> Spans:
    """One a process, however often it is asked for."""
    return Spans(endpoint, sample, source_name, process)
