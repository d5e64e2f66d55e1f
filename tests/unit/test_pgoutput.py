"""pgoutput's decoder against recorded frames, and against frames that are broken."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc.errors import DecodeError, PreconditionError
from cdc.source.events import Begin
from tests.unit.frames.record import recorded
from tests.unit.mutation import mutated
from tests.unit.recorded_events import check_boundaries, meaning, told

FRAMES, DECODER = recorded("pgoutput")
EVENTS = [event for frame in FRAMES if (event := DECODER.decode(frame)) is not None]


def test_the_recorded_workload() -> None:
    assert told(EVENTS) == meaning(nan=b'"NaN"', infinity=b'"Infinity"')
    check_boundaries(EVENTS)


def test_a_memoryview_is_as_good_as_bytes() -> None:
    _, decoder = recorded("pgoutput")
    events = [event for frame in FRAMES if (event := decoder.decode(memoryview(frame))) is not None]
    assert told(events) == told(EVENTS)


def test_one_table_object_as_long_as_nothing_changes() -> None:
    assert len({id(event.table) for event in EVENTS if hasattr(event, "table")}) == 2


@settings(max_examples=2000, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
@given(frame=mutated(FRAMES))
def test_a_broken_frame_is_a_decode_error(frame: bytes) -> None:
    """Or it still means something, or names a table that is not as the catalog says."""
    _, decoder = recorded("pgoutput")
    for good in FRAMES:
        decoder.decode(good)
    with suppress(PreconditionError):
        try:
            decoder.decode(frame)
        except DecodeError as error:
            assert "pgoutput" in error.message  # noqa: PT017 - most mutations are errors, not all
            assert error.hint  # noqa: PT017


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (b"", "unknown message at byte 0"),
        (b"?", "unknown message at byte 0"),
        (b"B\0", "cut off at byte 2"),
        (b"I\0\0\0\1N", "not announced, at byte 1"),
        (b"R\0\0\0\1public", "a name at byte 5 has no end"),
    ],
)
def test_what_is_wrong_is_said(frame: bytes, words: str) -> None:
    with pytest.raises(DecodeError, match=words):
        DECODER.decode(frame)


@given(us=st.integers(0, 4_000_000_000_000_000))
def test_commit_times_are_exact(us: int) -> None:
    since_2000 = us - 946_684_800_000_000
    frame = b"B" + (1).to_bytes(8, "big") + since_2000.to_bytes(8, "big", signed=True) + (7).to_bytes(4, "big")
    assert DECODER.decode(frame) == Begin(7, 1, us)
