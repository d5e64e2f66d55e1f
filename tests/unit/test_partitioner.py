"""Our partitions are Java's: known hashes of Kafka's own test, and a second, naive way to compute them."""

from __future__ import annotations

import random

import pytest

from cdc.kafka import partitioner
from cdc.kafka.partitioner import FEW, murmur2, partitions

# Kafka, UtilsTest.testMurmur2 (signed 32-bit there)
KNOWN = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


def naive(key: bytes) -> int:
    """MurmurHash2 byte by byte, as its description reads."""
    multiplier, wrap = 0x5BD1E995, 1 << 32
    value = 0x9747B28C ^ len(key)
    for start in range(0, len(key) - 3, 4):
        word = sum(key[start + i] << 8 * i for i in range(4)) * multiplier % wrap
        word = (word ^ word >> 24) * multiplier % wrap
        value = value * multiplier % wrap ^ word
    rest = key[len(key) // 4 * 4 :]
    for i in reversed(range(len(rest))):
        value ^= rest[i] << 8 * i
    if rest:
        value = value * multiplier % wrap
    value = (value ^ value >> 13) * multiplier % wrap
    return value ^ value >> 15


@pytest.mark.parametrize(("key", "expected"), KNOWN.items())
def test_known_hashes(key: bytes, expected: int) -> None:
    assert murmur2(key) == expected % (1 << 32)
    assert naive(key) == expected % (1 << 32)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 100, 1000])
def test_known_partitions_in_bulk(count: int) -> None:
    keys = list(KNOWN) * FEW
    assert partitions(keys, count) == [(h & 0x7FFFFFFF) % count for h in KNOWN.values()] * FEW


@pytest.mark.parametrize("size", [1, FEW - 1, FEW, FEW + 1, 2000])
@pytest.mark.parametrize("longest", [0, 3, 4, 45, 301])
def test_bulk_equals_naive(size: int, longest: int) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    keys = [chance.randbytes(chance.randint(0, longest)) for _ in range(size)]
    assert partitions(keys, 12) == [(naive(key) & 0x7FFFFFFF) % 12 for key in keys]


def test_equal_lengths_take_the_short_way() -> None:
    for length in range(1, 10):
        keys = [random.Random(length).randbytes(length) for _ in range(FEW * 2)]
        assert partitions(keys, 5) == [(naive(key) & 0x7FFFFFFF) % 5 for key in keys]


def test_a_huge_key_does_not_inflate_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitioner, "PADDED_BYTES", 1 << 16)
    keys = [b"%d" % i for i in range(500)] + [b"x" * 100_000] + [b"%d" % i for i in range(500)]
    assert partitions(keys, 6) == [(naive(key) & 0x7FFFFFFF) % 6 for key in keys]


def test_no_keys() -> None:
    assert partitions([], 4) == []
