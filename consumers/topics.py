"""Which topics a store reads: `<prefix>.<schema>.<table>` of the tables it wants, never ours (`<prefix>.cdc.*`)."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

from aiokafka.admin import AIOKafkaAdminClient

from cdc.config import Config
from consumers.store import Partition

ALL_TABLES = ("*",)


class TableTopics:
    """The table topics of one prefix. `tables` are `schema.table` patterns with * and ?."""

    def __init__(self, prefix: str, tables: Sequence[str] = ALL_TABLES) -> None:
        self._prefix = f"{prefix}."
        wanted = "|".join(fnmatch.translate(table) for table in tables)
        self.pattern = rf"^{re.escape(self._prefix)}(?!cdc\.)(?=[^.]+\.)(?:{wanted})"
        self._matches = re.compile(self.pattern).match

    def __contains__(self, topic: str) -> bool:
        return self._matches(topic) is not None

    def split(self, topic: str) -> tuple[str, str]:
        """topic → schema, table. The topic has to be one of these."""
        schema, _dot, table = topic.removeprefix(self._prefix).partition(".")
        return schema, table


async def table_partitions(config: Config, topics: TableTopics) -> list[Partition]:
    """Every partition of every table topic that exists now, sorted. Raises KafkaError."""
    admin = AIOKafkaAdminClient(**config.kafka.client_options())
    try:
        await admin.start()
        names = [name for name in await admin.list_topics() if name in topics]
        described = await admin.describe_topics(names) if names else []
    finally:
        await admin.close()
    return sorted((topic["topic"], part["partition"]) for topic in described for part in topic["partitions"])
