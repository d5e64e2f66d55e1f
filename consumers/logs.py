"""Kafka's logs without a group: where they begin and end, and what is read of them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import AsyncExitStack
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, TopicPartition

from cdc.config import Config
from consumers.connection import disconnect
from consumers.partitions import FETCH_WAIT_MS, PARTITION_BYTES
from consumers.store import Partition


class Connected:
    """A consumer of ours without a group, as a context."""

    def __init__(self, config: Config, isolation: str, **options: int) -> None:
        self._consumer: Any = AIOKafkaConsumer(
            **config.kafka.client_options(),
            isolation_level=isolation,
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_partition_fetch_bytes=PARTITION_BYTES,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            **options,
        )

    async def __aenter__(self) -> Self:
        try:
            await self._consumer.start()
        except BaseException:
            await disconnect(self._consumer)
            raise
        return self

    async def __aexit__(self, *_error: object) -> None:
        await disconnect(self._consumer)

    async def ends(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        """As far as this isolation sees them. Raises KafkaError."""
        found = await self._consumer.end_offsets([TopicPartition(*p) for p in partitions]) if partitions else {}
        return {tuple(partition): end for partition, end in found.items()}

    async def starts(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        """The first offset each log still has. Raises KafkaError."""
        found = await self._consumer.beginning_offsets([TopicPartition(*p) for p in partitions]) if partitions else {}
        return {tuple(partition): start for partition, start in found.items()}


class Ends(Connected):
    """Where logs end, records of open transactions included, and which topics there are."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, "read_uncommitted")

    async def topics(self) -> set[str]:
        """All there are now. Raises KafkaError."""
        return set(await self._consumer.topics())


class LogEnds:
    """`Ends` for who asks now and then: connected when first asked, until `close`."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._open = AsyncExitStack()
        self._ends: Ends | None = None
        self._lock = asyncio.Lock()

    async def ends(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        """Raises KafkaError."""
        async with self._lock:
            if self._ends is None:
                self._ends = await self._open.enter_async_context(Ends(self._config))
        return await self._ends.ends(partitions)

    async def close(self) -> None:
        """Ends the connection, if there is one."""
        await self._open.aclose()
