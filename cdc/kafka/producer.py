"""aiokafka's producer with a bounded start and an end that really ends.

aiokafka retries for ever and flushes before it stops: with a broker away neither comes back. And after any failed
produce, AddPartitions or EndTxn request a transactional producer of the old protocol is not to be used again (its
sequence numbers and its transaction may differ from the broker's), so a writer in doubt abandons its producer and opens
a new one, whose InitProducerId fences and aborts whatever the old one left.
"""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

from aiokafka import AIOKafkaProducer
from aiokafka.errors import ProducerClosed
from aiokafka.producer import sender

from cdc.config import Config, Kafka
from cdc.kafka import failure

BATCH_BYTES = 1 << 20  # of one batch before compression; larger ones gain nothing, a larger record gets its own
BACKOFF_MS = 50  # between tries of a failed request; half of aiokafka's default
RETRY_SECONDS = 0.002  # the last transaction's markers take 1-3 ms; aiokafka would let a new one wait 20
ABANDON_SECONDS = 1.0  # for the tasks of a producer in doubt to end by themselves, their requests failed, before a push


def transactional_id(config: Config) -> str:
    """One a source and prefix: what fences an older writer."""
    return f"memory-cdc.{config.kafka.prefix}.{config.source_name}"


def batch_bytes(kafka: Kafka) -> int:
    """Of one batch before compression."""
    return min(BATCH_BYTES, kafka.max_record_bytes)


async def open_producer(config: Config) -> Any:
    """A started producer; with exactly-once delivery it has fenced every older one.

    Raises ConnectError, and PreconditionError when the broker does not allow the transaction time-out.
    """
    kafka = config.kafka
    timeout_ms = int(kafka.transaction_timeout_seconds * 1000)
    identity: dict[str, Any] = {"enable_idempotence": True}
    if kafka.delivery == "exactly-once":
        identity = {"transactional_id": transactional_id(config), "transaction_timeout_ms": timeout_ms}
    sender.BACKOFF_OVERRIDE = RETRY_SECONDS  # a constant of the module, no option
    producer = AIOKafkaProducer(
        acks="all",
        compression_type=None if kafka.compression == "none" else kafka.compression,
        max_batch_size=batch_bytes(kafka),
        max_request_size=kafka.max_record_bytes,
        request_timeout_ms=timeout_ms,
        retry_backoff_ms=BACKOFF_MS,
        **identity,
        **kafka.client_options(),
    )
    try:
        # the broker may first have to abort the older writer's transaction, or wait for its commit's markers
        async with failure.bounded(kafka, "starting the writer", failure.CONNECT_SECONDS + timeout_ms / 1000):
            await producer.start()
    except BaseException:
        await abandon(producer)
        raise
    return producer


async def _refuse(*_: object) -> NoReturn:
    raise ProducerClosed


def _ignore(_: BaseException) -> None:
    """Nobody waits for the batches any more, so failing them would only be reported as unseen."""


async def abandon(producer: Any) -> None:
    """Ends a producer without flushing: whatever it had under way is in doubt, and nothing is sent any more."""

    task = producer._sender.sender_task
    producer._closed = True
    producer.client.coordinator_lookup = _refuse  # else a task would look for the coordinator until it is back
    producer._message_accumulator.fail_all = _ignore
    if task is not None:
        task.cancel()
    await producer.client.close()  # fails the requests in flight, which the sender waits for
    if task is not None:
        await asyncio.wait({task}, timeout=ABANDON_SECONDS)
        task.cancel()  # a second time: it may wait for metadata that never come
        await asyncio.wait({task}, timeout=ABANDON_SECONDS)
    for ended in (task, producer._txn_manager._transaction_waiter):
        if ended is not None and ended.done() and not ended.cancelled():
            ended.exception()  # known already: it is why the producer is abandoned
    await producer.client.close()  # a task may have connected again meanwhile
