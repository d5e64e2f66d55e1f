"""Whatever several writers do at once, while snapshots run and the reader is killed: topic, Redis and index equal
PostgreSQL, each position is there once, and in order.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg.rows import TupleRow

from cdc.config import Config
from cdc.embedded import Endpoints
from tests.comparison import assert_equal_everywhere, assert_in_order
from tests.pipeline import MEMORIES, Running, config_of, emit, source
from tests.waiting import until

EXAMPLES = 12  # about 20 s on 2 cores; each is some 100 changes of several writers
ROWS = 25  # few, so that writers meet
CHUNK = 3  # so that a snapshot of few rows has many windows
SNAPSHOT = json.dumps({"kind": "snapshot", "table": ["public", "memories"]}).encode()

keys = st.integers(1, ROWS)
long = st.sampled_from(["short", "x" * 3000, "y" * 9000, 'q"\\\n\u2028 ünï'])
changes = st.one_of(
    st.tuples(st.just("put"), keys, long),
    st.tuples(st.just("put"), keys, long),
    st.tuples(st.just("touch"), keys),
    st.tuples(st.just("touch"), keys),
    st.tuples(st.just("odd"), keys, st.sampled_from(["NaN", "Infinity", "-0", "1e-300", None])),
    st.tuples(st.just("move"), keys, keys),
    st.tuples(st.just("delete"), keys),
    st.tuples(st.just("savepoint")),
    st.tuples(st.just("undo")),
    st.tuples(st.just("many"), keys),
    st.tuples(st.sampled_from(["touch", "touch", "touch", "truncate"]), keys),
)
transactions = st.tuples(st.lists(changes, min_size=1, max_size=12), st.sampled_from([True, True, True, False]))
writers = st.lists(transactions, min_size=3, max_size=10)
workloads = st.tuples(
    st.lists(writers, min_size=1, max_size=4),
    st.lists(st.sampled_from(["snapshot", "restart", "snapshot"]), max_size=3),
)

STATEMENTS = {
    "put": "INSERT INTO memories (id, content, score, embedding) VALUES (%s, %s, 0.1, array[1,2,3,4,5,6,7,%s]) "
    "ON CONFLICT (id) DO UPDATE SET content = excluded.content, embedding = excluded.embedding, tags = '{}'",
    "touch": "UPDATE memories SET who = %s WHERE id = %s",
    "odd": "UPDATE memories SET score = %s, amount = %s WHERE id = %s",
    "move": "UPDATE memories m SET id = %s WHERE id = %s AND NOT EXISTS (SELECT FROM memories WHERE id = %s)",
    "delete": "DELETE FROM memories WHERE id = %s",
    "many": "UPDATE memories SET who = who || '.' WHERE id >= %s",
    "truncate": "TRUNCATE memories",
    "savepoint": "SAVEPOINT s",
    "undo": "ROLLBACK TO SAVEPOINT s",
}


def parameters(change: tuple[Any, ...], number: int) -> list[Any]:
    """What a statement takes; `number` makes values differ."""
    kind, *rest = change
    if kind == "put":
        return [rest[0], rest[1], number]
    if kind == "touch":
        return [f"user {number}", rest[0]]
    if kind == "odd":
        return [rest[1], None if rest[1] == "-0" else rest[1], rest[0]]
    if kind == "move":
        return [rest[1], rest[0], rest[1]]
    return rest if kind in ("delete", "many") else []


class Writing:
    """Runs a workload's writers in threads; `done` counts transactions, so that others know how far it is."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.done = 0

    def run(self, work: list[Any]) -> None:
        """One writer. A deadlock or a key taken meanwhile undoes its transaction, as in any application."""
        with source(self._config) as connection:
            connection.execute("SET deadlock_timeout = '20ms'")
            for number, (transaction, commit) in enumerate(work):
                try:
                    self._transaction(connection, transaction, commit, number)
                except (psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation):
                    connection.execute("ROLLBACK")
                self.done += 1

    def _transaction(
        self, connection: psycopg.Connection[TupleRow], changes: list[Any], commit: bool, number: int
    ) -> None:
        connection.execute("BEGIN")
        saved = False
        for change in changes:
            if change[0] == "undo" and not saved:
                continue
            saved = saved or change[0] == "savepoint"
            connection.execute(STATEMENTS[change[0]].encode(), parameters(change, number))
        connection.execute("COMMIT" if commit else "ROLLBACK")


async def check(running: Running, work: list[Any], events: list[str]) -> None:
    """Writers at work, events meanwhile, then everything is compared."""
    writing = Writing(running.config)
    total = sum(map(len, work))
    tasks = [asyncio.create_task(asyncio.to_thread(writing.run, writer)) for writer in work]
    for number, event in enumerate(events):
        share = total * number // len(events)
        await until(lambda: writing.done >= share, "writers at work")  # noqa: B023 - awaited at once
        if event == "restart":
            await running.restart()
        else:
            await asyncio.to_thread(emit, running.config, SNAPSHOT)
    await asyncio.gather(*tasks)
    await running.caught_up()
    assert_in_order(await assert_equal_everywhere(running))


@pytest.mark.parametrize("plugin", ["wal2json", "pgoutput"])
def test_stores_equal_the_source(servers: Endpoints, dsn: str, tmp_path: Path, plugin: str) -> None:
    if plugin != servers.plugin == "pgoutput":
        pytest.skip("this PostgreSQL has no wal2json")
    config = config_of(
        servers, dsn, tmp_path,
        postgres={"snapshot_chunk_rows": CHUNK, "plugin": plugin, "heartbeat_seconds": 0.1},
        kafka={"transaction_rows": 20},  # so that transactions are cut
    )  # fmt: skip
    with source(config) as connection:
        connection.execute(MEMORIES)
        connection.execute(
            "INSERT INTO memories (id, content, embedding) SELECT n, repeat('z', 3000), array[n,1,1,1,1,1,1,1] "
            "FROM generate_series(1, 200) n"
        )
    with asyncio.Runner() as runner:
        running: Running = runner.run(begin(config))

        @settings(
            max_examples=EXAMPLES // 2,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        )
        @given(workloads)
        def example(workload: tuple[list[Any], list[str]]) -> None:
            runner.run(check(running, *workload))

        try:
            example()
        finally:
            runner.run(running.close())


async def begin(config: Config) -> Running:
    return Running(config)
