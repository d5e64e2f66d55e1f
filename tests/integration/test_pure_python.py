"""Without the compiled half everything goes the ordinary way, and the topic is the same."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cdc.config import parse
from cdc.embedded import Endpoints
from tests.comparison import assert_in_order, by_id, rows_of, table_dump, topic_rows
from tests.pipeline import MEMORIES, CommandChild, settings, source
from tests.waiting import until

WRITE = """
INSERT INTO memories (id, content, embedding)
SELECT n, repeat('q" é', n), array[n,0,0,0,0,0,0,1]::real[] FROM generate_series(1, 50) n;
UPDATE memories SET content = content || '+' WHERE id % 3 = 0;
UPDATE memories SET id = id + 100 WHERE id % 7 = 0;
DELETE FROM memories WHERE id % 5 = 0
"""


@pytest.mark.parametrize("pure", ["", "1"])
@pytest.mark.parametrize("plugin", ["wal2json", "pgoutput"])
async def test_the_topic_is_the_same(servers: Endpoints, dsn: str, tmp_path: Path, plugin: str, pure: str) -> None:
    data = settings(servers, dsn, tmp_path, postgres={"plugin": plugin})
    config = parse(data)
    with source(config) as connection:
        connection.execute(MEMORIES)
        for statement in WRITE.split(";"):
            connection.execute(statement)
        child = CommandChild(data, tmp_path, "reader", environment={"CDC_PURE_PYTHON": pure})
        try:
            await until(lambda: "snapshot done" in child.log.read_text(), "the snapshot")
            connection.execute("UPDATE memories SET content = content || '!'")
            connection.execute("INSERT INTO memories (id, content) SELECT n, 'new' FROM generate_series(500, 520) n")

            async def equal() -> bool:
                records = await table_dump(config)
                assert_in_order(records)
                return by_id(topic_rows(records)) == by_id(await asyncio.to_thread(rows_of, config))

            await until(equal, "the topic to hold the table")
        finally:
            child.kill()
