"""Tasks whose libraries lose a cancellation end all the same."""

from __future__ import annotations

import asyncio

import pytest

from cdc import ending
from cdc.ending import end, look


async def lossy(turns: list[int], *, looks: bool) -> None:
    """A loop that takes the first cancellation for another task's, as a client that is being stopped does."""
    while True:
        turns.append(len(turns))
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            if len(turns) > 1:
                raise
        if looks:
            look()


async def test_a_lost_cancellation_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "AGAIN_SECONDS", 0.01)
    turns: list[int] = []
    task = asyncio.ensure_future(lossy(turns, looks=False))
    await asyncio.sleep(0)
    await end(task)
    assert (task.cancelled(), len(turns)) == (True, 2)


async def test_a_loop_that_looks_ends_at_its_next_turn() -> None:
    turns: list[int] = []
    task = asyncio.ensure_future(lossy(turns, looks=True))
    await asyncio.sleep(0)
    await end(task)
    assert (task.cancelled(), len(turns)) == (True, 1)


async def test_a_failure_stays_to_be_asked_for() -> None:
    async def failing() -> None:
        raise ValueError("odd")

    task = asyncio.ensure_future(failing())
    await asyncio.sleep(0)
    await end(task)
    assert isinstance(task.exception(), ValueError)
