"""The newest records of some keys, read from their topic: what verify asks about keys whose content differs.

It reads the topic from its beginning, so it costs seconds a million records, and nothing when no key is asked for.
"""

from __future__ import annotations

from collections.abc import Collection

from cdc.config import Config
from cdc.envelope import decode_after
from consumers.batches import to_records
from consumers.replay import Span, replay, span_ends
from consumers.store import Record
from consumers.verify import Written


async def newest(config: Config, schema: str, table: str, keys: Collection[bytes]) -> dict[bytes, Written[bytes]]:
    """By key, those without any record left out. Raises KafkaError, DecodeError."""
    wanted, found = frozenset(keys), dict[bytes, Record]()
    topic = f"{config.kafka.prefix}.{schema}.{table}"
    spans = {partition: Span(None, end) for partition, end in (await span_ends(config, [topic])).items()}
    async for messages in replay(config, spans):
        records, _foreign = to_records([message for message in messages if message.key in wanted])
        for record in records:
            other = found.get(record.key)
            if other is None or record.position >= other.position:
                found[record.key] = record
    return {key: Written(record.position, _row(record)) for key, record in found.items()}


def _row(record: Record) -> bytes | None:
    """The row's JSON; None for a delete."""
    return None if record.value is None else decode_after(record.value)[1]
