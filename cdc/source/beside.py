"""Blocking work of psycopg beside the event loop.

Promises: when the caller is cancelled the thread is waited for, and what it opened is closed. Else the caller would
close a connection under a running call of libpq, which frees the memory that call works on. A call that waits for the
server is told to give up (`cdc.source.patience`), so that the wait is short also when the server is silent.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import ParamSpec, Protocol, TypeVar

from cdc.source.patience import abandoned


class Closable(Protocol):
    """A connection, or what holds one."""

    def close(self) -> None:
        """Ends it."""


P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C", bound=Closable)


async def beside(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs `work` in a thread; returns or raises what it does, when cancelled only after it has ended."""
    task, left = _thread(work, *args, **kwargs)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        left.set()
        await _ended(task)
        raise


@asynccontextmanager
async def opened(make: Callable[P, C], *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[C]:
    """What `make` opens in a thread, closed at the end of the block."""
    task, left = _thread(make, *args, **kwargs)
    try:
        made = await asyncio.shield(task)
    except asyncio.CancelledError:
        left.set()
        if await _ended(task):
            task.result().close()
        raise
    try:
        yield made
    finally:
        made.close()


def _thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[asyncio.Future[T], threading.Event]:
    """The running work, and what tells it that nobody waits for it any more."""
    left = threading.Event()

    def run() -> T:
        abandoned.set(left)  # in the thread's own copy of the context
        return work(*args, **kwargs)

    return asyncio.ensure_future(asyncio.to_thread(run)), left


async def _ended(task: asyncio.Future[T]) -> bool:
    """Waits for the task whatever cancels us meanwhile; True when it has a result."""
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            continue  # the first cancellation is on its way up already
    return not task.cancelled() and task.exception() is None
