"""Threads outlive a cancelled caller: what they use must not be closed under them, what they open must be closed."""

from __future__ import annotations

import asyncio
import threading

import pytest

from cdc.source.beside import beside, opened

LIMIT_SECONDS = 10.0  # only so that a broken test ends


class Opened:
    """A connection that takes its time to open, and to work."""

    def __init__(self, go_on: threading.Event) -> None:
        self.closed = self.worked = False
        self.go_on = go_on

    def work(self) -> None:
        self.go_on.wait(LIMIT_SECONDS)
        self.worked = not self.closed

    def close(self) -> None:
        self.closed = True


async def cancelled_while_blocked(task: asyncio.Task[None], begun: threading.Event, go_on: threading.Event) -> None:
    await asyncio.to_thread(begun.wait, LIMIT_SECONDS)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=0)
    assert not done  # the thread is waited for
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_connection_opened_for_nobody_is_closed() -> None:
    begun, go_on = threading.Event(), threading.Event()
    made: list[Opened] = []

    def make() -> Opened:
        begun.set()
        go_on.wait(LIMIT_SECONDS)
        made.append(Opened(go_on))
        return made[0]

    async def use() -> None:
        async with opened(make):
            raise AssertionError("cancelled before")

    await cancelled_while_blocked(asyncio.create_task(use()), begun, go_on)
    assert [each.closed for each in made] == [True]


async def test_a_connection_is_not_closed_under_a_running_call() -> None:
    begun, go_on = threading.Event(), threading.Event()
    connection = Opened(go_on)

    def work() -> None:
        begun.set()
        connection.work()

    async def use() -> None:
        async with opened(lambda: connection):
            await beside(work)

    await cancelled_while_blocked(asyncio.create_task(use()), begun, go_on)
    assert (connection.worked, connection.closed) == (True, True)


async def test_what_fails_in_the_thread_is_raised() -> None:
    def fail() -> Opened:
        raise ConnectionError("refused")

    with pytest.raises(ConnectionError):
        await beside(fail)
    with pytest.raises(ConnectionError):
        async with opened(fail):
            raise AssertionError("never opened")
