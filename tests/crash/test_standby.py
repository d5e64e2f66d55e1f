"""Two readers on one slot, as processes: one works, the other stands by and takes over; a zombie writes nothing more.

Writers go on all the while; afterwards the topic holds every row once and in order.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cdc.config import Config, parse
from cdc.embedded import Endpoints
from cdc.kafka.progress import read_progress
from tests.comparison import Record, assert_in_order, by_id, rows_of, table_dump, topic_rows
from tests.conftest import fresh_database
from tests.pipeline import MEMORIES, CommandChild, settings, source
from tests.waiting import until

ROUNDS = 5
TAKE_OVER_SECONDS = 60  # the promise
SENDER_SECONDS = 8  # wal_sender_timeout: after that PostgreSQL gives up a reader that hangs; a start takes less


@pytest.fixture
def data(servers: Endpoints, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Settings over a fresh database whose walsenders give up after SENDER_SECONDS."""
    with fresh_database(servers.postgres_dsn) as dsn:
        found = settings(servers, dsn, tmp_path)
        with source(parse(found)) as connection:
            connection.execute(MEMORIES)
            name = connection.info.dbname
            connection.execute(f"ALTER DATABASE {name} SET wal_sender_timeout = '{SENDER_SECONDS}s'")
        yield found


@contextmanager
def writing(config: Config) -> Iterator[None]:
    """A session that inserts and updates until the end, a transaction every few milliseconds."""
    done = threading.Event()

    def work() -> None:
        with source(config) as connection:
            for number in range(1, 1_000_000):
                if done.wait(0.005):
                    return
                with connection.transaction():
                    connection.execute("INSERT INTO memories (id, content) VALUES (%s, 'new')", [number])
                    connection.execute("UPDATE memories SET content = 'old' WHERE id = %s", [number - 1])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


async def lsn(config: Config) -> int:
    """How far the topics reach."""
    progress = await read_progress(config)
    return progress.end_lsn if progress else 0


async def moved(config: Config, beyond: int) -> float:
    """Waits until progress is beyond an LSN; the seconds that took."""
    begun = time.monotonic()

    async def there() -> bool:
        return await lsn(config) > beyond

    await until(there, "somebody who took over", TAKE_OVER_SECONDS)
    return time.monotonic() - begun


@contextmanager
def readers(data: dict[str, Any], folder: Path) -> Iterator[Callable[..., CommandChild]]:
    """Starts readers, and kills all of them at the end."""
    made: list[CommandChild] = []

    def start(**environment: str) -> CommandChild:
        made.append(CommandChild(data, folder, "reader", environment=environment))
        return made[-1]

    try:
        yield start
    finally:
        for child in made:
            child.kill()


async def said(child: CommandChild, words: str) -> None:
    """Waits for something in a process's log."""
    await until(lambda: words in child.log.read_text(), f"a reader saying {words!r}")


def stopped(child: CommandChild) -> bool:
    """Whether it hangs (proc(5), state T)."""
    return Path(f"/proc/{child.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


async def settled(config: Config) -> list[Record]:
    """The topic once it holds everything that is committed."""
    with source(config) as connection:
        row = connection.execute("SELECT (pg_current_wal_lsn() - '0/0')::int8").fetchone()
    assert row is not None
    await moved(config, row[0])
    return await table_dump(config)


async def assert_whole(config: Config) -> None:
    """The topic holds the table's rows; nothing is there twice."""
    records = await settled(config)
    assert_in_order(records)
    assert by_id(topic_rows(records)) == by_id(await asyncio.to_thread(rows_of, config))


async def test_the_standby_takes_over_when_the_reader_is_killed(data: dict[str, Any], tmp_path: Path) -> None:
    config, taken = parse(data), []
    with readers(data, tmp_path) as start:
        working = start()
        await moved(config, 0)
        with writing(config):
            for _ in range(ROUNDS):
                other = start()
                await said(other, "standing by")
                working.kill()
                taken.append(await moved(config, await lsn(config)))
                working = other
        await assert_whole(config)
    print(f"take-over after SIGKILL: {', '.join(f'{seconds:.2f}' for seconds in taken)} s")


async def test_a_reader_that_hung_writes_nothing_more(data: dict[str, Any], tmp_path: Path) -> None:
    """SIGSTOP in the middle of a Kafka transaction; PostgreSQL gives it up, the other takes over and fences it."""
    config = parse(data)
    with readers(data, tmp_path) as start:
        zombie = start(CDC_FAILPOINTS="writer.before-commit=stop@200")  # later than the other needs to start
        await moved(config, 0)
        other = start()
        await said(other, "standing by")
        with writing(config):
            await until(
                lambda: stopped(zombie), "a reader that hangs"
            )  # it says so before: not to be sent on too early
            begun = time.monotonic()
            await said(other, '"reading"')  # progress may move once more by what the zombie wrote last
            seconds = time.monotonic() - begun
            zombie.process.send_signal(signal.SIGCONT)
            await said(zombie, "standing by")
            other.kill()
            await moved(config, await lsn(config))
        await assert_whole(config)
    print(f"take-over from a reader that hangs: {seconds:.2f} s, wal_sender_timeout {SENDER_SECONDS} s")
