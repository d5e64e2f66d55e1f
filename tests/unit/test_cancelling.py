"""A cancellation that is forgotten once, or twice, still ends what it was meant for."""

from __future__ import annotations

import asyncio

import pytest

from cdc import cancelling


class Deaf:
    """Forgets cancellations, as asyncio.wait_for may; counts them."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.heard = 0

    async def work(self) -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.heard += 1
                if self.heard > self.left:
                    raise


@pytest.mark.parametrize("times", [0, 1, 2])
async def test_a_task_that_forgets(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancelling, "AGAIN_SECONDS", 0.01)
    deaf = Deaf(times)
    task = asyncio.ensure_future(deaf.work())
    await asyncio.sleep(0)
    (ended,) = await cancelling.cancel(task)
    assert isinstance(ended, asyncio.CancelledError)
    assert deaf.heard == times + 1


async def test_work_that_forgets_ends_with_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancelling, "AGAIN_SECONDS", 0.01)
    deaf = Deaf(1)
    caller = asyncio.ensure_future(cancelling.cancellable(deaf.work()))
    await asyncio.sleep(0.01)
    caller.cancel()
    await asyncio.wait({caller})
    assert caller.cancelled()
    assert deaf.heard == 2


async def test_results_and_errors_come_through() -> None:
    async def seven() -> int:
        return 7

    async def fails() -> int:
        raise LookupError("no")

    assert await cancelling.cancellable(seven()) == 7
    with pytest.raises(LookupError, match="no"):
        await cancelling.cancellable(fails())
