"""wal2json's decoder against recorded frames, and against frames that are broken."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc.errors import DecodeError, PreconditionError
from cdc.source.events import UNKNOWN, Begin
from tests.unit.frames.record import recorded
from tests.unit.mutation import mutated
from tests.unit.recorded_events import check_boundaries, meaning, told

FRAMES, DECODER = recorded("wal2json")
EVENTS = [event for frame in FRAMES if (event := DECODER.decode(frame)) is not None]


def test_the_recorded_workload() -> None:
    assert told(EVENTS) == meaning(nan=UNKNOWN, infinity=UNKNOWN)
    check_boundaries(EVENTS)


def test_a_memoryview_is_as_good_as_bytes() -> None:
    _, decoder = recorded("wal2json")
    events = [event for frame in FRAMES if (event := decoder.decode(memoryview(frame))) is not None]
    assert told(events) == told(EVENTS)


def test_one_table_object_as_long_as_nothing_changes() -> None:
    assert len({id(event.table) for event in EVENTS if hasattr(event, "table")}) == 2


@settings(max_examples=2000, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
@given(frame=mutated(FRAMES))
def test_a_broken_frame_is_a_decode_error(frame: bytes) -> None:
    """Or it still means something, or names a table that is not as the catalog says."""
    _, decoder = recorded("wal2json")
    for good in FRAMES:
        decoder.decode(good)
    with suppress(PreconditionError):
        try:
            decoder.decode(frame)
        except DecodeError as error:
            assert "wal2json" in error.message  # noqa: PT017 - most mutations are errors, not all
            assert error.hint  # noqa: PT017


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (b"", "unknown action"),
        (b'{"action":"X"}', "unknown action at byte 11"),
        (b'{"action":"I","schema":"public","table":"notes","columns":[{"name":"id"}]}', "typeoid"),
        (b'{"action":"I","schema":"public"', "truncated"),
        (b'{"action":"B","xid":1,"timestamp":"soon","lsn":"0/1","nextlsn":"0/2"}', "timestamp"),
        (b'{"action":"B","xid":1,"timestamp":"2026-11-20 00:00:00+00","lsn":"1","nextlsn":"0/2"}', "LSN"),
    ],
)
def test_what_is_wrong_is_said(frame: bytes, words: str) -> None:
    with pytest.raises(DecodeError, match=words):
        DECODER.decode(frame)


@given(us=st.integers(0, 4_000_000_000_000_000))
def test_commit_times_are_exact(us: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
    text = f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond:06}".rstrip("0").rstrip(".") + "+00"
    frame = f'{{"action":"B","xid":1,"timestamp":"{text}","lsn":"0/1","nextlsn":"0/2"}}'
    assert DECODER.decode(frame.encode()) == Begin(1, 1, us)
