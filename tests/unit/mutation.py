"""Frames as they should never come: random bytes, and real ones cut, spliced and overwritten."""

from __future__ import annotations

from hypothesis import strategies as st


def mutated(frames: list[bytes]) -> st.SearchStrategy[bytes]:
    """Mostly frames with a few changes, now and then noise."""
    some = st.sampled_from([frame[:600] + frame[-600:] if len(frame) > 1200 else frame for frame in frames])

    @st.composite
    def change(draw: st.DrawFn) -> bytes:
        frame = bytearray(draw(some))
        for _ in range(draw(st.integers(1, 3))):
            at = draw(st.integers(0, len(frame)))
            kind = draw(st.sampled_from(("overwrite", "insert", "cut", "drop", "splice")))
            if kind == "overwrite":
                frame[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            elif kind == "insert":
                frame[at:at] = draw(
                    st.binary(max_size=8) | st.sampled_from([b'"', b"{", b"null", b"[1]", b"\\", b"\xff"])
                )
            elif kind == "cut":
                del frame[at:]
            elif kind == "drop":
                del frame[at : at + draw(st.integers(1, 20))]
            else:
                frame[at:] = draw(some)[at:]
        return bytes(frame)

    return change() | change() | st.binary(max_size=200)
