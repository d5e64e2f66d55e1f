"""`python -m benchmarks.floor ROLE CONFIG …`: the least that commit → Kafka can take, in two parts, each a process.

`stream`: a bare replication connection with the same plugin and options, which notes when each row arrives and does
nothing with it. `transaction`: one record in a Kafka transaction of its own at a steady rate, from `begin` until a
consumer of committed records has it, by the same client as ours. `ordered`: the same with a record in each partition of
a table's topic, from when the transaction was due: what an order-keeping writer of that topic cannot undercut.
"""

from __future__ import annotations

import asyncio
import json
import select
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
from aiokafka import AIOKafkaConsumer, TopicPartition
from psycopg import pq, sql

from benchmarks.reader import decoder_options
from benchmarks.writer import TRANSACTIONS
from cdc.config import Config, parse
from cdc.kafka.producer import open_producer

HEADER = 25  # bytes of XLogData before the plugin's own
INSERTS = {"pgoutput": b"I", "wal2json": b'{"action":"I"'}  # how a row's message begins
SILENT_SECONDS = 120.0
SEEN_SECONDS = 30.0  # until the last record is with its reader


def stream(config: Config, size: int, number: int) -> list[float]:
    """Monotonic seconds at which the last row of each of `number` transactions of `size` rows arrived."""
    dsn, insert = config.postgres.conninfo(), INSERTS[config.postgres.plugin]
    with psycopg.connect(dsn, autocommit=True) as connection:
        options = decoder_options(config, connection)
    arrivals: list[float] = []
    rows = 0
    with closing(psycopg.connect(dsn, autocommit=True, replication="database")) as connection:
        pgconn = started(connection, config.postgres.slot, options)
        while len(arrivals) < number:
            count, data = pgconn.get_copy_data(1)
            if count > 0:
                if data[:1] == b"w" and bytes(data[HEADER : HEADER + len(insert)]) == insert:
                    rows += 1
                    if rows % size == 0:
                        arrivals.append(time.monotonic())
            elif count < 0:
                raise RuntimeError(f"the stream ended after {rows} rows: {pgconn.error_message!r}")
            elif not select.select([pgconn.socket], [], [], SILENT_SECONDS)[0]:
                raise TimeoutError(f"the stream is silent after {rows} rows")
            else:
                pgconn.consume_input()
    return arrivals


def started(connection: psycopg.Connection, slot: str, options: dict[str, str]) -> Any:
    """libpq's connection, in COPY_BOTH."""
    pairs = [sql.SQL("{} {}").format(sql.Identifier(key), sql.Literal(value)) for key, value in options.items()]
    command = sql.SQL("START_REPLICATION SLOT {} LOGICAL 0/0 ({})")
    result = connection.pgconn.exec_(
        command.format(sql.Identifier(slot), sql.SQL(", ").join(pairs)).as_bytes(connection)
    )
    if result.status != pq.ExecStatus.COPY_BOTH:
        raise RuntimeError(f"START_REPLICATION: {result.error_message!r}")
    return connection.pgconn


async def transactions(
    config: Config, topic: str, number: int, *, partitions: int = 1, queued: bool = False
) -> list[float]:
    """Seconds that each of `number` transactions took until its records, one a partition, were seen; `queued`: with the
    time it waited for the one before."""
    begun: list[float] = []
    seen: list[float] = []
    options = config.kafka.client_options()
    consumer = AIOKafkaConsumer(**options, isolation_level="read_committed", auto_offset_reset="earliest")
    producer = await open_producer(config)
    await consumer.start()
    consumer.assign([TopicPartition(topic, partition) for partition in range(partitions)])

    async def watch() -> None:
        while len(seen) < number * partitions:
            records = await consumer.getmany(timeout_ms=100)
            seen.extend([time.monotonic()] * sum(map(len, records.values())))

    watching = asyncio.create_task(watch())
    first = time.monotonic()
    for n in range(number):
        due = first + n / TRANSACTIONS
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        begun.append(due if queued else time.monotonic())
        async with producer.transaction():
            sent = [await producer.send(topic, b"%d" % n, partition=partition) for partition in range(partitions)]
            await asyncio.gather(*sent)
    async with asyncio.timeout(SEEN_SECONDS):
        await watching
    await producer.stop()
    await consumer.stop()
    # one transaction after the other: its last record is seen before the first of the next
    return [at - start for start, at in zip(begun, seen[partitions - 1 :: partitions], strict=True)]


def main(name: str, path: str, *arguments: str) -> None:
    """One line: a list of seconds."""
    config = parse(json.loads(Path(path).read_text()))
    if name == "stream":
        found = stream(config, int(arguments[0]), int(arguments[1]))
    else:
        partitions, queued = (config.kafka.partitions, True) if name == "ordered" else (1, False)
        topic, number = arguments
        found = asyncio.run(transactions(config, topic, int(number), partitions=partitions, queued=queued))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
