"""Puts chunks into Kafka, each whole or not at all, and says when they are durable.

Steps of `write`, exactly-once:
 1. Cut the records into batches; nothing has been sent yet, so a record that is too large costs nothing.
 2. Begin a Kafka transaction; send all batches, and progress with them: the transaction makes them one.
 3. Wait for the broker's answer to every single batch: `commit_transaction` commits although one failed.
 4. Send the heartbeat, if any, with the end offsets which the answers told; wait for its answer.
 5. Commit. Only now is anything visible to committed readers, and only now is it durable.
At-least-once goes the same way without a transaction (idempotent producer, acks=all), but progress is sent only after
step 3, so a writer that dies in between writes the data again. It fences no older writer; the slot admits one reader.

After any error but a `RecordError` of step 1 the writer is closed, and what it wrote is in doubt: open a new one (which
fences the old one and aborts its rest), read progress again, resume the stream behind it. ConnectError: try again.
FencedError: stop.

What a store has to reach to be fresh up to a heartbeat: `position(partition) >= end` in every data partition, as a
read_committed consumer tells it that has handed out everything before. An end is the last record's offset + 1, or, in a
partition not written since this writer started, the last stable offset then, which lies behind the last transaction's
marker and behind aborted records. `position()` moves past both; the last offset seen + 1 does not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors

from cdc.config import Config
from cdc.errors import CdcError, ConnectError, RecordError
from cdc.failpoint import failpoint
from cdc.kafka import failure
from cdc.kafka.batch import COMPILED, Batch, compiled
from cdc.kafka.chunk import Batches, Chunk, Heartbeat, Packer
from cdc.kafka.offsets import Ends, committed_ends
from cdc.kafka.producer import abandon, batch_bytes, open_producer
from cdc.kafka.progress import encode_progress

REQUEST_BYTES = 32 << 20  # under way at once; a third of the broker's usual socket.request.max.bytes (100 MiB)
ABORT_SECONDS = 5.0  # to tell the broker that a failed chunk is void; else the next writer's start does

PACKER = Packer(compiled.spread, compiled.pack) if COMPILED else None
_TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)


class Written(NamedTuple):
    """A durable chunk: how many records, when it became so (µs since the Unix epoch), the ends of all partitions."""

    records: int
    durable_us: int
    ends: Mapping[str, list[int]]


class Sent(NamedTuple):
    """A batch under way."""

    topic: str
    partition: int
    batch: Any
    answer: asyncio.Future[Any]


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

    async def write(self, chunk: Chunk, prepared: list[Batches] | None = None) -> Written:
        """Makes the chunk durable, see the steps above; `prepared` is its step 1, done before. Raises RecordError,
        ConnectError, FencedError."""
        self._opened()
        batches = self.prepare(chunk) if prepared is None else prepared
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._config.kafka.transaction_timeout_seconds):
                return await self._write(chunk, batches)
        except BaseException as error:
            await self._give_up(error)
            if isinstance(error, kafka_errors.KafkaError | OSError | TimeoutError | AssertionError):
                raise self._typed(error, time.monotonic() - begun) from error
            raise

    async def close(self) -> None:
        """Ends the connection; nothing is under way between two writes. May be called twice."""
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await abandon(producer)

    def prepare(self, chunk: Chunk) -> list[Batches]:
        """Step 1, which may be done while another chunk is being written. Raises RecordError, ConnectError."""
        self._opened()
        made = []
        for topic, records in chunk.records.items():
            count, limit = self._partitions[topic], self._config.kafka.max_record_bytes
            topic_batches = Batches(topic, count, self._batch, limit, PACKER)
            topic_batches.fill(records, chunk.markers.get(topic, ()), chunk.blocks.get(topic, ()))
            if COMPILED and topic in chunk.blocks:
                topic_batches.compress()
            made.append(topic_batches)
        return made

    def _batch(self) -> Any:
        kafka = self._config.kafka
        if not COMPILED:
            return self._producer.create_batch()
        transactional = kafka.delivery == "exactly-once"
        return Batch(batch_bytes(kafka), kafka.compression, transactional=transactional)

    def _opened(self) -> None:
        if self._producer is None:
            raise ConnectError("the writer is closed", hint="open a new one, and read progress again")

    async def _write(self, chunk: Chunk, batches: list[Batches]) -> Written:
        kafka = self._config.kafka
        transactional = kafka.delivery == "exactly-once"
        progress = encode_progress(chunk.progress) if chunk.progress else None
        last: list[Sent] = []
        if transactional:
            await self._producer.begin_transaction()
            if chunk.heartbeat:  # told to the coordinator with the others: one request less in its transaction
                self._producer._txn_manager.maybe_add_partition_to_txn(TopicPartition(kafka.heartbeat_topic, 0))
            last += await self._put(kafka.progress_topic, progress)
        failpoint("writer.before-produce")
        ends = await self._send(batches)
        failpoint("writer.after-produce")
        heartbeat = encode_heartbeat(chunk.heartbeat, ends) if chunk.heartbeat else None
        last += await self._put(kafka.heartbeat_topic, heartbeat)
        if not transactional:
            last += await self._put(kafka.progress_topic, progress)
        await _answers(last)
        failpoint("writer.before-commit")
        if transactional:
            await self._producer.commit_transaction()
        failpoint("writer.after-commit")
        self._ends = ends
        return Written(chunk.count, time.time_ns() // 1000, ends)

    async def _send(self, batches: list[Batches]) -> Ends:
        """Sends all batches and waits for each one's answer; the ends behind them."""
        ends = {topic: list(offsets) for topic, offsets in self._ends.items()}
        pending: list[Sent] = []
        size = 0
        for topic_batches in batches:
            for partition, batch in topic_batches.rounds():
                if pending and size + batch.size() > REQUEST_BYTES:
                    await _settle(pending, ends)
                    size = 0
                size += batch.size()
                pending.append(await self._dispatch(batch, topic_batches.topic, partition))
        await _settle(pending, ends)
        return ends

    async def _put(self, topic: str, value: bytes | None) -> list[Sent]:
        """Sends one record of ours, keyed by the source; nothing for None."""
        if value is None:
            return []
        batch = self._producer.create_batch()
        key = self._config.source_name.encode()
        batch.append(timestamp=time.time_ns() // 1_000_000, key=key, value=value, headers=[])
        batch.close()
        return [await self._dispatch(batch, topic, 0)]

    async def _dispatch(self, batch: Any, topic: str, partition: int) -> Sent:
        """Hands a batch to aiokafka, which waits only if the partition's last one has not gone out yet."""
        answer = await self._producer.send_batch(batch, topic, partition=partition)
        answer.add_done_callback(_look_at)
        return Sent(topic, partition, batch, answer)

    async def _give_up(self, error: BaseException) -> None:
        """Aborts if the broker answers, so that readers need not wait for the transaction's time-out, and closes."""
        producer = self._producer
        if producer is None:  # closed meanwhile
            return
        manager = producer._txn_manager
        answers = isinstance(error, RecordError | kafka_errors.BrokerResponseError)
        if answers and manager.is_in_transaction() and not producer._sender.sender_task.done():
            try:
                async with asyncio.timeout(ABORT_SECONDS):
                    await producer.abort_transaction()
            except (kafka_errors.KafkaError, OSError, TimeoutError):
                pass  # the next writer's InitProducerId aborts it; the error that led here is what is told
        await self.close()

    def _typed(self, error: BaseException, elapsed: float) -> CdcError:
        kafka = self._config.kafka
        if elapsed >= kafka.transaction_timeout_seconds:
            # the broker fences a transaction it has timed out: that is no other writer
            return failure.typed(TimeoutError(), kafka, f"writing a chunk ({elapsed:.1f} s)")
        return failure.typed(error, kafka, "writing a chunk")


def encode_heartbeat(heartbeat: Heartbeat, ends: Mapping[str, list[int]]) -> bytes:
    """The heartbeat topic's JSON."""
    position = heartbeat.position.encode().decode()
    return msgspec.json.encode({"ts_us": heartbeat.ts_us, "position": position, "ends": ends})


def _look_at(answer: asyncio.Future[Any]) -> None:
    """Marks a failure as seen: when another one ends the chunk first, nobody asks for this one."""
    if not answer.cancelled():
        answer.exception()


async def _settle(pending: list[Sent], ends: Ends) -> None:
    """Waits for all answers, moves the ends, empties the list."""
    for sent, offset in zip(pending, await _answers(pending), strict=True):
        ends[sent.topic][sent.partition] = offset + sent.batch.record_count()
    pending.clear()


async def _answers(pending: list[Sent]) -> list[int]:
    """The first offset of each batch. Raises the first failure once all answers have come, RecordError for a record
    that is larger than its topic allows."""
    answers = await asyncio.gather(*(sent.answer for sent in pending), return_exceptions=True)
    for sent, answer in zip(pending, answers, strict=True):
        if isinstance(answer, _TOO_LARGE):
            raise RecordError(
                "too_large",
                f"Kafka refuses a record for {sent.topic} as larger than that topic's max.message.bytes",
                hint="raise the topic's max.message.bytes to [kafka] max_record_bytes, `cdc doctor` shows how",
            ) from answer
        if isinstance(answer, BaseException):
            raise answer
        if answer.offset < 0:  # the broker knows it for a repetition, too old to tell its offset
            raise kafka_errors.DuplicateSequenceNumber
    return [answer.offset for answer in answers if not isinstance(answer, BaseException)]
