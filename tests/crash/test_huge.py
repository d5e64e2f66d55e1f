"""Rows and transactions beyond the usual: bounded memory where they pass, one sentence and a way out where they do not.

`CDC_HUGE=1` runs them at full size (some minutes, 3 GB): a transaction of 1,000,000 rows, a row of 50 MB, a row above
512 MB, and a row that the output plugin cannot show. Without it the same in small. Peaks are VmHWM (proc(5)).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis
from prometheus_client import REGISTRY

from cdc.commands.exposition import read_samples, total
from cdc.config import Config
from cdc.embedded import Endpoints
from cdc.errors import StuckError
from cdc.reader import Reader
from tests.command_line import CommandLine, free_ports, peak_bytes
from tests.pipeline import config_of, settings, source
from tests.waiting import LIMIT_SECONDS, until

HUGE = bool(os.environ.get("CDC_HUGE"))
MIB = 1 << 20

ROWS = 1_000_000 if HUGE else 30_000
WIDE = 50 * MIB if HUGE else 10 * MIB
PATIENCE = 15 if HUGE else 1  # times the usual limit of a wait

# What is allowed above a process that has seen a hundred rows. The chunk under way, the next and what is being encoded:
# some 10 times [kafka] transaction_bytes (8 MiB), whatever the transaction's size.
READER_EXTRA = 100 * MIB
CONSUMER_EXTRA = 250 * MIB  # 10,000 records polled, 5,000 of them encoded, and 32 MiB prefetched, decompressed
ROW_BYTES = 1000  # what an index may need for a row of the table here
WIDE_TIMES = 10  # a wide row is held as received, as JSON, as a record, as a batch, compressed, as a request
WIDE_EXTRA = 64 * MIB  # beside: what libpq and the allocator keep


class Processes:
    """`cdc reader`, both consumers and the gateway, measured."""

    def __init__(self, servers: Endpoints, dsn: str, folder: Path) -> None:
        self.data = settings(servers, dsn, folder, **free_ports())
        self.config = config_of(servers, dsn, folder, **self.data)
        self.command = CommandLine(folder, self.data)
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    @contextlib.contextmanager
    def up(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name in ("reader", "redis", "faiss", "gateway"):
                arguments = ("consume", name) if name in ("redis", "faiss") else (name,)
                self.running[name] = stack.enter_context(self.command.running(*arguments))
            yield

    def peaks(self) -> dict[str, int]:
        """By process, in bytes."""
        return {name: peak_bytes(process.pid) for name, process in self.running.items()}

    async def rows(self, store: str) -> int | None:
        """As the store's own consumer counts them."""
        samples = await read_samples(f"127.0.0.1:{self.data['metrics'][f'{store}_port']}", 3)
        records = total(samples, "cdc_store_records_total", store=store, op="upsert")
        return None if records is None else int(records)


async def patiently(condition: Any, what: str) -> None:
    """`until`, for as many times its limit as these sizes need."""
    for left in reversed(range(PATIENCE)):
        try:
            return await until(condition, what)
        except AssertionError:
            if not left:
                raise


async def upserted(processes: Processes, rows: int) -> bool:
    for store in ("redis", "faiss"):
        assert processes.running[store].poll() is None, f"{store} ended"
        if (await processes.rows(store) or 0) < rows:
            return False
    return True


async def started(processes: Processes) -> bool:
    try:
        await processes.rows("faiss"), await processes.rows("redis")
    except Exception as error:  # noqa: BLE001 - whatever it is, it has not started
        print("waiting", type(error).__name__)
        return False
    return True


def table(title: str, before: Mapping[str, int], after: Mapping[str, int]) -> None:
    print(title)
    for name in after:
        print(f"  {name}: VmHWM {before[name] / MIB:.0f} → {after[name] / MIB:.0f} MiB")


async def test_a_transaction_of_very_many_rows(servers: Endpoints, table_dsn: str, tmp_path: Path) -> None:
    processes = Processes(servers, table_dsn, tmp_path)
    fill = (
        "INSERT INTO memories SELECT n, 'who', 'text ' || n, n, n, '{}', array[n,0,0,0,0,0,0,1]::real[]"
        " FROM generate_series(%s::int, %s::int) n"
    )
    with processes.up(), source(processes.config) as connection:
        await until(lambda: started(processes), "all processes")
        connection.execute(fill, [1, 100])
        await patiently(lambda: upserted(processes, 100), "a hundred rows")
        before = processes.peaks()
        connection.execute(fill, [101, ROWS])
        await patiently(lambda: upserted(processes, ROWS), f"{ROWS} rows in both stores")
        after = processes.peaks()
        status = await asyncio.to_thread(processes.command.json, "status")  # counts from the stores themselves
        assert {store["rows"]["public.memories"] for store in status["stores"].values()} == {ROWS}
        if not HUGE:  # reads every row of all three, minutes for a million on a busy machine
            assert (await asyncio.to_thread(processes.command.json, "verify"))["equal"]
    table(f"one transaction of {ROWS} rows", before, after)
    assert after["reader"] < before["reader"] + READER_EXTRA
    assert after["redis"] < before["redis"] + CONSUMER_EXTRA
    assert after["faiss"] < before["faiss"] + CONSUMER_EXTRA + ROWS * ROW_BYTES


async def test_a_very_wide_row(servers: Endpoints, table_dsn: str, tmp_path: Path) -> None:
    """Text that does not compress, inserted, and taken along by an update that does not touch it."""
    processes = Processes(servers, table_dsn, tmp_path)
    with processes.up(), source(processes.config) as connection:
        await until(lambda: started(processes), "all processes")
        connection.execute(
            "INSERT INTO memories (id, embedding) SELECT n, array[n,0,0,0,0,0,0,1] FROM generate_series(1, 100) n"
        )
        await patiently(lambda: upserted(processes, 100), "a hundred rows")
        before = processes.peaks()
        text = os.urandom(WIDE // 2).hex()
        connection.execute(
            "INSERT INTO memories (id, content, embedding) VALUES (0, %s, array[1,0,0,0,0,0,0,1])", [text]
        )
        connection.execute("UPDATE memories SET who = 'touched' WHERE id = 0")
        await patiently(lambda: upserted(processes, 102), "the wide row")
        after = processes.peaks()
        with redis.Redis.from_url(processes.config.redis.url) as client:
            assert client.hget("memories:0", "content") == text.encode()
            assert client.hget("memories:0", "who") == b"touched"
    table(f"a row of {WIDE / MIB:.0f} MiB", before, after)
    for name in after:
        assert after[name] < before[name] + WIDE_TIMES * WIDE + WIDE_EXTRA, name


async def test_a_change_that_cannot_be_shown_is_refused(servers: Endpoints, table_dsn: str, tmp_path: Path) -> None:
    """The publication was dropped and made again: what was written in between fails in the plugin every time."""
    config = config_of(servers, table_dsn, tmp_path, postgres={"plugin": "pgoutput"})
    with source(config) as connection:
        async with _stopped_after_start(config):
            pass
        connection.execute(f"DROP PUBLICATION {config.postgres.publication}")
        connection.execute("INSERT INTO memories (id) VALUES (1)")
        await _refused_as_stuck(config, "cdc resync")


@contextlib.asynccontextmanager
async def _stopped_after_start(config: Config) -> AsyncIterator[None]:
    reader = Reader(config, gap_seconds=0)
    running = asyncio.ensure_future(reader.run())
    try:
        await until(lambda: reader.progress is not None and reader.progress.position.commit_lsn > 0, "progress")
        yield
    finally:
        reader.stop()
        await running


async def _refused_as_stuck(config: Config, remedy: str) -> None:
    labels = {"source": config.source_name, "reason": "PluginFailed"}
    with pytest.raises(StuckError, match="3 times in a row") as caught:
        await asyncio.wait_for(Reader(config, gap_seconds=0).run(), PATIENCE * LIMIT_SECONDS)
    assert remedy in caught.value.hint
    assert REGISTRY.get_sample_value("cdc_reader_retries_total", labels) == 3
    print(caught.value)


@pytest.mark.skipif(not HUGE, reason="CDC_HUGE=1: 3 GB of memory, minutes")
async def test_a_row_that_the_plugin_cannot_show(servers: Endpoints, table_dsn: str, tmp_path: Path) -> None:
    """200 MB that wal2json writes as 1.2 GB of JSON: its buffer ends at 1 GB."""
    config = config_of(servers, table_dsn, tmp_path)
    if config.postgres.plugin != "wal2json":
        pytest.skip("wal2json alone writes so much")
    with source(config) as connection:
        connection.execute("ALTER TABLE memories ALTER content SET STORAGE EXTENDED")
        async with _stopped_after_start(config):
            pass
        connection.execute("INSERT INTO memories (id, content) VALUES (1, repeat(chr(1), 200 << 20))")
        await _refused_as_stuck(config, "pgoutput")


@pytest.mark.skipif(not HUGE, reason="CDC_HUGE=1: 3 GB of memory, minutes")
@pytest.mark.parametrize("plugin", ["wal2json", "pgoutput"])
async def test_a_row_above_512_mb(servers: Endpoints, table_dsn: str, tmp_path: Path, plugin: str) -> None:
    """Set aside, everything behind it goes on; the peak is a small multiple of the row."""
    processes = Processes(servers, table_dsn, tmp_path)
    processes.data["kafka"]["oversized"] = "dead-letter"
    processes.data["postgres"]["plugin"] = plugin
    processes.command = CommandLine(tmp_path, processes.data)
    size = 600 * MIB
    with processes.up(), source(processes.config) as connection:
        connection.execute("ALTER TABLE memories ALTER content SET STORAGE EXTENDED")
        await until(lambda: started(processes), "all processes")
        connection.execute("INSERT INTO memories (id) VALUES (1)")
        await patiently(lambda: upserted(processes, 1), "a row")
        before = processes.peaks()
        connection.execute("INSERT INTO memories (id, content) VALUES (2, repeat('x', %s))", [size])
        connection.execute("INSERT INTO memories (id) VALUES (3)")
        await patiently(lambda: upserted(processes, 2), "the row behind")
        after = processes.peaks()
        listed = await asyncio.to_thread(processes.command.json, "dlq", "list", "reader", code=1)
        assert [letter["key"] for letter in listed["letters"]] == ['{"id":2}']
    table(f"a row of {size / MIB:.0f} MiB by {plugin}", before, after)
    print(f"  reader: {(after['reader'] - before['reader']) / size:.1f} times the row")
    assert after["reader"] < before["reader"] + 6 * size
    assert after["redis"] < before["redis"] + 50 * MIB
