"""Bytes as they should never come, made fast: a hundred thousand a second a core, from a seed that is printed.

Bit flips, cuts, overwritten lengths, splices of two inputs, and for JSON other types, deep nesting, huge numbers and
missing or repeated members.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

INPUTS = int(os.environ.get("CDC_FUZZ_INPUTS", "120000"))  # in all; `CDC_FUZZ_INPUTS=2000000` is the long run
HANG_SECONDS = 60  # for a few hundred inputs, which take milliseconds
GROWTH_BYTES = 400 << 20  # what a run may need above what it began with, caches and the largest inputs included

_ODD = [
    b"", b"\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b'"', b"{", b"}", b"[", b"null", b"\\", b"\\u",
    b"\\ud800", b"\xc3\x28", b"-", b"1e999", b"9" * 400, b"NaN", b"true", b'{"a":', b"[[[[", b"%s", b"%b", b"\n",
]  # fmt: skip
_DEEP = [b"[" * 5000, b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 5000]
_VALUES: list[Any] = [
    None, True, False, 0, -1, 10**30, -(10**400), 1e308, "", "x", "\0", "16/B374D848", [], {}, [[]], {"a": {}}, [None],
]  # fmt: skip


def mutate(rng: random.Random, inputs: Sequence[bytes]) -> bytes:
    """One of them, changed in one to four places."""
    data = bytearray(inputs[int(rng.random() * len(inputs))])
    for _ in range(1 + int(rng.random() * 4)):
        at = int(rng.random() * (len(data) + 1))
        kind = int(rng.random() * 9)
        if kind <= 1 and at < len(data):
            data[at] ^= 1 << int(rng.random() * 8)
        elif kind == 2 and at < len(data):
            data[at] = int(rng.random() * 256)
        elif kind == 3:
            data[at : at + 4] = rng.randbytes(4)  # a length or an oid
        elif kind == 4:
            data[at:at] = _ODD[int(rng.random() * len(_ODD))]
        elif kind == 5:
            del data[at:]
        elif kind == 6:
            del data[at : at + 1 + int(rng.random() * 20)]
        elif kind == 7:
            other = inputs[int(rng.random() * len(inputs))]
            data[at:] = other[int(rng.random() * (len(other) + 1)) :]
        elif rng.random() < 0.001:
            data[at:at] = _DEEP[int(rng.random() * len(_DEEP))]
    return bytes(data)


def confuse(rng: random.Random, inputs: Sequence[bytes]) -> bytes:
    """JSON that is well-formed and wrong: types, members, depth, numbers. What is no JSON is mutated as bytes."""
    text = inputs[int(rng.random() * len(inputs))]
    try:
        value = json.loads(text)
    except ValueError:
        return mutate(rng, inputs)
    for _ in range(1 + int(rng.random() * 2)):
        value = _confused(rng, value)
    data = json.dumps(value, separators=(",", ":")).encode()
    return data.replace(b'"deep"', _DEEP[1]) if rng.random() < 0.01 else data


def _confused(rng: random.Random, value: Any) -> Any:
    """Another value somewhere below."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.1:
            del value[key]
        elif kind < 0.2:
            value[rng.choice(["x", "", "action", "name", key + key])] = value[key]
        else:
            value[key] = _confused(rng, value[key])
        return value
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = int(rng.random() * len(value))
        kind = rng.random()
        if kind < 0.1:
            del value[at]
        elif kind < 0.2:
            value.append(value[at])
        else:
            value[at] = _confused(rng, value[at])
        return value
    return "deep" if rng.random() < 0.05 else deepcopy(_VALUES[int(rng.random() * len(_VALUES))])


@contextmanager
def guarded() -> Iterator[None]:
    """Ends what hangs."""

    def hangs(*_: object) -> None:
        raise TimeoutError(f"an input takes more than {HANG_SECONDS} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(HANG_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def frugal() -> Iterator[None]:
    """Fails when memory grows without a bound."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < GROWTH_BYTES, f"{grown >> 20} MiB more than before"
