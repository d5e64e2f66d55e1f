"""The bound of the consumers: aiokafka's `getmany` and the decoding of one vector a record, with our fetch sizes."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition

from benchmarks.measure import Sample, rate
from cdc.config import Config
from cdc.envelope import decode_floats
from consumers.faiss.columns import Reader
from consumers.partitions import FETCH_BYTES, FETCH_WAIT_MS, PARTITION_BYTES, POLL_RECORDS

POLL_MS = 200


async def drain(config: Config, column: str, rows: int) -> dict[str, Any]:
    """Reads the table of the index once, up to `rows` records; rows a second, and seconds of CPU spent."""
    topic = config.kafka.table_topic(*config.faiss.table.split("."))
    consumer = AIOKafkaConsumer(
        **config.kafka.client_options(),
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        fetch_max_bytes=FETCH_BYTES,
        max_partition_fetch_bytes=PARTITION_BYTES,
        fetch_max_wait_ms=FETCH_WAIT_MS,
        max_poll_records=POLL_RECORDS,
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, number) for number in range(config.kafka.partitions)])
        return await _drain(consumer, column, rows)
    finally:
        await consumer.stop()


async def _drain(consumer: AIOKafkaConsumer, column: str, rows: int) -> dict[str, Any]:
    read = Reader(column, str).read
    samples: list[Sample] = []
    size = 0
    while not samples or samples[-1].rows < rows:
        arrays = [
            decode_floats(read(message.value).value)
            for messages in (await consumer.getmany(timeout_ms=POLL_MS)).values()
            for message in messages
        ]
        if arrays:
            size += np.concatenate(arrays).nbytes
            samples.append(Sample(time.monotonic(), (samples[-1].rows if samples else 0) + len(arrays)))
    return {"rate": rate(samples), "rows": samples[-1].rows, "bytes": size, "polls": len(samples)}
