"""Puts chunks into Kafka, each whole or not at all, and says when they are durable.

Steps of `write` (exactly-once):
 1. Cut the records into batches; nothing has been sent yet, so a record that is too large costs nothing.
 2. Begin a Kafka transaction and send all batches.
 3. Wait for the broker's answer to every single batch: `commit_transaction` commits although one failed.
 4. Send progress and heartbeat in the same transaction, the heartbeat with the offsets the answers told; wait for them.
 5. Commit. Only now is anything visible to committed readers, and only now is it durable.
At-least-once goes the same way without a transaction (idempotent producer, acks=all): progress is sent once the data are durable,
so a writer that dies between the two writes the data again. It does not fence an older writer; the slot admits one only.

After any error but `RecordError` from step 1 the writer is closed, and what it wrote is in doubt: open a new one (which fences and
aborts the rest), read progress again, and resume the stream behind it. ConnectError: try again. FencedError: stop.

The ends in a heartbeat are what a consumer has to reach to be fresh: offset of the last record + 1 of every partition, or, for
a partition not written since this writer started, its last stable offset then (behind the trailing transaction marker). A
read_committed consumer's `position()` reaches both, see `tests/integration/test_writer.py`; the highest record offset + 1 does
not reach the second. So stores compare `position() >= end`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from aiokafka import errors as kafka_errors

from cdc.config import Config
from cdc.errors import CdcError, ConnectError, RecordError
from cdc.kafka import failure
from cdc.kafka.chunk import Batches, Chunk, Heartbeat
from cdc.kafka.offsets import Ends, committed_ends
from cdc.kafka.producer import abandon, open_producer
from cdc.kafka.progress import encode_progress

REQUEST_BYTES = 32 << 20  # under way at once; a third of the broker's usual socket.request.max.bytes (100 MiB)
ABORT_SECONDS = 5.0  # to tell the broker that a failed chunk is void; else the next writer's start does

_TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)


class Written(NamedTuple):
    """A durable chunk: how many records, when it became durable (µs since the Unix epoch), the ends of all partitions."""

    records: int
    durable_us: int
    ends: Mapping[str, list[int]]


class Writer:
    """The only writer of a source's topics. `partitions`: topic → count, as `ensure_topics` returns it."""

    def __init__(self, config: Config, partitions: Mapping[str, int]) -> None:
        self._config = config
        self._partitions = dict(partitions)
        self._ends: Ends = {}
        self._producer: Any = None

    async def start(self) -> None:
        """Fences the older writer (exactly-once), then learns the ends. Raises ConnectError, PreconditionError."""
        self._producer = await open_producer(self._config)
        try:
            self._ends = await committed_ends(self._config.kafka, self._partitions)
        except BaseException:
            await self.close()
            raise

    async def add_topic(self, topic: str, partitions: int) -> None:
        """A table that came later. Raises ConnectError."""
        self._ends |= await committed_ends(self._config.kafka, {topic: partitions})
        self._partitions[topic] = partitions

    @property
    def ends(self) -> Mapping[str, list[int]]:
        """Topic → end offsets: the live state, to be read only."""
        return self._ends

    async def write(self, chunk: Chunk) -> Written:
        """Makes the chunk durable, see the steps above. Raises RecordError, ConnectError, FencedError."""
        if self._producer is None:
            raise ConnectError("the writer is closed", hint="open a new one, and read progress again")
        batches = self._batches(chunk)
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._config.kafka.transaction_timeout_seconds):
                return await self._write(chunk, batches)
        except BaseException as error:
            await self._give_up()
            if isinstance(error, kafka_errors.KafkaError | OSError | TimeoutError | AssertionError):
                raise self._typed(error, time.monotonic() - begun) from error
            raise

    async def close(self) -> None:
        """Ends the connection; nothing is under way between two writes. May be called twice."""
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await abandon(producer)

    def _batches(self, chunk: Chunk) -> list[Batches]:
        made = []
        for topic, records in chunk.records.items():
            topic_batches = Batches(
                topic, self._partitions[topic], self._producer.create_batch, self._config.kafka.max_record_bytes
            )
            topic_batches.fill(records, chunk.markers.get(topic, ()))
            made.append(topic_batches)
        return made

    async def _write(self, chunk: Chunk, batches: list[Batches]) -> Written:
        transactional = self._config.kafka.delivery == "exactly-once"
        if transactional:
            await self._producer.begin_transaction()
        ends = await self._send(batches)
        await self._conclude(chunk, ends)
        if transactional:
            await self._producer.commit_transaction()
        self._ends = ends
        return Written(chunk.count, time.time_ns() // 1000, ends)

    async def _send(self, batches: list[Batches]) -> Ends:
        """Sends all batches and waits for each one's answer; the ends behind them."""
        ends = {topic: list(offsets) for topic, offsets in self._ends.items()}
        pending: list[tuple[str, int, Any, asyncio.Future[Any]]] = []
        size = 0
        for topic_batches in batches:
            for partition, batch in topic_batches.rounds():
                if pending and size + batch.size() > REQUEST_BYTES:
                    await _settle(pending, ends)
                    size = 0
                size += batch.size()
                future = await self._producer.send_batch(batch, topic_batches.topic, partition=partition)
                pending.append((topic_batches.topic, partition, batch, future))
        await _settle(pending, ends)
        return ends

    async def _conclude(self, chunk: Chunk, ends: Ends) -> None:
        """Progress and heartbeat, behind the data."""
        kafka, name = self._config.kafka, self._config.source_name.encode()
        now_ms = time.time_ns() // 1_000_000
        futures = []
        for topic, value in (
            (kafka.heartbeat_topic, chunk.heartbeat and encode_heartbeat(chunk.heartbeat, ends)),
            (kafka.progress_topic, chunk.progress and encode_progress(chunk.progress)),
        ):
            if value:
                batch = self._producer.create_batch()
                batch.append(timestamp=now_ms, key=name, value=value, headers=[])
                batch.close()
                futures.append(await self._producer.send_batch(batch, topic, partition=0))
        await _all(futures)

    async def _give_up(self) -> None:
        """Aborts what can be aborted, so that readers need not wait for the transaction's time-out, and closes."""
        producer = self._producer
        manager = producer and producer._txn_manager
        if producer is not None and manager.transactional_id is not None and not producer._sender.sender_task.done():
            try:
                async with asyncio.timeout(ABORT_SECONDS):
                    if manager.is_in_transaction():
                        await producer.abort_transaction()
            except (kafka_errors.KafkaError, OSError, TimeoutError):
                pass  # the next writer's InitProducerId aborts it; the error that led here is what is told
        await self.close()

    def _typed(self, error: BaseException, elapsed: float) -> CdcError:
        kafka = self._config.kafka
        if failure.find(error, _TOO_LARGE):
            return RecordError(
                "too_large",
                f"Kafka at {kafka.bootstrap} refuses a record as larger than its topic's max.message.bytes",
                hint="run `cdc doctor`: it names the topic whose max.message.bytes is below [kafka] max_record_bytes",
            )
        if elapsed >= kafka.transaction_timeout_seconds:
            # the broker fences a transaction it has timed out: that is no other writer
            return failure.typed(TimeoutError(), kafka, f"writing a chunk ({elapsed:.1f} s)")
        return failure.typed(error, kafka, "writing a chunk")


def encode_heartbeat(heartbeat: Heartbeat, ends: Mapping[str, list[int]]) -> bytes:
    """The heartbeat topic's JSON."""
    position = heartbeat.position.encode().decode()
    return msgspec.json.encode({"ts_us": heartbeat.ts_us, "position": position, "ends": ends})


async def _settle(pending: list[tuple[str, int, Any, asyncio.Future[Any]]], ends: Ends) -> None:
    """Waits for all answers, moves the ends, empties the list. Raises the first failure, once all have come."""
    answers = await _all([future for *_, future in pending])
    for (topic, partition, batch, _), answer in zip(pending, answers, strict=True):
        if answer.offset < 0:  # the broker knows it for a repetition too old to tell its offset
            raise kafka_errors.DuplicateSequenceNumber
        ends[topic][partition] = answer.offset + batch.record_count()
    pending.clear()


async def _all(futures: list[asyncio.Future[Any]]) -> list[Any]:
    """All results, or the first failure; every failure is looked at, so that none is reported as unretrieved."""
    answers = await asyncio.gather(*futures, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers
