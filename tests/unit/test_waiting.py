"""What is waited for is said at once, once a minute, and never at every try; waits are by chance, and bounded."""

from __future__ import annotations

from itertools import islice

from cdc.errors import ConnectError
from cdc.waiting import REPEAT_SECONDS, Waiting, reason_and_hint
from consumers.retry import FIRST_SECONDS, MOST_SECONDS, delays


def test_a_reason_is_said_once_a_minute_and_another_at_once() -> None:
    now = 0.0
    waiting = Waiting(lambda: now)
    said = []
    for tick in range(3 * int(REPEAT_SECONDS)):
        now = float(tick)
        if waiting.news("away" if tick < 150 else "loading"):
            said.append(tick)
    assert said == [0, 60, 120, 150]
    assert waiting.seconds == now


def test_what_works_is_forgotten() -> None:
    now = 5.0
    waiting = Waiting(lambda: now)
    assert waiting.seconds == 0
    assert waiting.news("away")
    waiting.over()
    assert waiting.seconds == 0
    assert waiting.news("away")


def test_a_line_has_the_remedy() -> None:
    assert reason_and_hint(ConnectError("away", hint="start it")) == {"reason": "away", "hint": "start it"}
    assert reason_and_hint(KeyError("x")) == {"reason": "KeyError('x')"}


def test_waits_are_spread_over_everything_below_a_bound() -> None:
    """A thousand that lost a server at once: nobody waits longer than the bound, and they come spread out."""
    last = [list(islice(delays(), 12))[-1] for _consumer in range(1000)]
    assert 0 <= min(last) < MOST_SECONDS / 10
    assert MOST_SECONDS * 0.9 < max(last) <= MOST_SECONDS
    assert all(next(delays()) <= FIRST_SECONDS for _ in range(100))
