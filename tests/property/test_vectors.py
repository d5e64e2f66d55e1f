"""Decoding a vector's wire form: as strict as the standard library's strict mode, and exact."""

from __future__ import annotations

import binascii

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.envelope import decode_floats, encode_floats, float_bytes
from cdc.errors import DecodeError

FLOATS = st.lists(st.floats(width=32), max_size=9)
ODD = st.text(st.sampled_from('AQz09+/=-_ \n"\\\x00é'), max_size=3)


@given(FLOATS)
def test_what_was_encoded_comes_back_to_the_bit(values: list[float]) -> None:
    vector = np.array(values, dtype="<f4")
    assert float_bytes(encode_floats(vector)) == vector.tobytes()
    assert float_bytes(encode_floats(vector).encode()) == vector.tobytes()
    assert decode_floats(encode_floats(vector.astype("<f8"), double=True)).tobytes() == vector.tobytes()


@given(FLOATS, st.integers(min_value=0), ODD, st.integers(0, 3))
def test_spoilt_text_is_refused_or_means_what_the_standard_library_reads(
    values: list[float], place: int, odd: str, lost: int
) -> None:
    body = encode_floats(np.array(values, dtype="<f4"))[4:]
    at = place % (len(body) + 1)
    spoilt = body[:at] + odd + body[at + lost :]
    try:
        found = float_bytes(f"f32:{spoilt}")
    except DecodeError:
        return
    assert found == binascii.a2b_base64(spoilt, strict_mode=True)


@pytest.mark.parametrize("text", ["", "f32", "f16:AAAA", "f32:AAAA", "f32:AAAAAA", r"f32:AAAA\u0041A", "f64:AAAAAA=="])
def test_what_is_no_vector_is_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        float_bytes(text)
