"""Which partition a key belongs to: Java's default, so that every other Kafka client agrees.

`(murmur2(key) & 0x7fffffff) % partitions`, murmur2 with seed 0x9747b28c over little-endian words, 32-bit wrap-around
(Austin Appleby's MurmurHash2, as Kafka's `org.apache.kafka.common.utils.Utils.murmur2` has it). Many keys at once are
hashed by numpy, a column of words at a time: key by key in Python costs more than all else a record goes through.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

SEED = 0x9747B28C
MULTIPLIER = 0x5BD1E995
MASK = 0xFFFF_FFFF
POSITIVE = 0x7FFF_FFFF  # Kafka's toPositive drops the sign bit
FEW = 10  # keys; below it numpy's fixed cost (about 30 µs a call) outweighs the loop's 3 µs a key
PADDED_BYTES = 4 << 20  # bytes of one padded key matrix, so that a single huge key cannot inflate its whole batch

Words = npt.NDArray[np.uint32]


def murmur2(key: bytes) -> int:
    """The 32-bit hash of one key, unsigned."""
    size = len(key)
    whole = size & ~3
    value = SEED ^ size
    for (word,) in struct.iter_unpack("<I", key[:whole]):
        word = word * MULTIPLIER & MASK
        word = (word ^ word >> 24) * MULTIPLIER & MASK
        value = (value * MULTIPLIER & MASK) ^ word
    if size != whole:
        value = (value ^ int.from_bytes(key[whole:], "little")) * MULTIPLIER & MASK
    value = (value ^ value >> 13) * MULTIPLIER & MASK
    return value ^ value >> 15


def partitions(keys: Sequence[bytes], count: int) -> list[int]:
    """The partition of each key, in order, for a topic of `count` partitions."""
    if count == 1:
        return [0] * len(keys)
    if len(keys) < FEW:
        return [(murmur2(key) & POSITIVE) % count for key in keys]
    lengths = np.fromiter(map(len, keys), dtype=np.int64, count=len(keys))
    longest = int(lengths.max())
    if (longest + 4) * len(keys) > PADDED_BYTES and len(keys) > 1:
        middle = len(keys) // 2
        return partitions(keys[:middle], count) + partitions(keys[middle:], count)
    hashes = _murmur2_all(_words(b"".join(keys), lengths, longest), lengths)
    result: list[int] = ((hashes & np.uint32(POSITIVE)) % np.uint32(count)).tolist()
    return result


def _words(joined: bytes, lengths: npt.NDArray[np.int64], longest: int) -> Words:
    """Keys as rows of little-endian words, padded with zeros by one to four bytes, then turned: shape (words, keys)."""
    width = longest // 4 * 4 + 4
    padded = np.zeros((len(lengths), width), dtype=np.uint8)
    raw = np.frombuffer(joined, dtype=np.uint8)
    if len(raw) == len(lengths) * longest:  # all are equally long, the usual case of uuid keys
        padded[:, :longest] = raw.reshape(len(lengths), longest)
    else:
        padded[np.arange(width) < lengths[:, None]] = raw
    return np.ascontiguousarray(padded.view("<u4").T).astype(np.uint32, copy=False)


def _murmur2_all(words: Words, lengths: npt.NDArray[np.int64]) -> Words:
    """murmur2 of every column; array arithmetic on uint32 wraps as Java's int does."""
    factor = np.uint32(MULTIPLIER)
    whole = lengths // 4
    mixed = words * factor
    mixed ^= mixed >> np.uint32(24)
    mixed *= factor
    value = np.uint32(SEED) ^ lengths.astype(np.uint32)
    shortest = int(whole.min())
    for index in range(shortest):
        value *= factor
        value ^= mixed[index]
    for index in range(shortest, len(words) - 1):
        value = np.where(whole > index, value * factor ^ mixed[index], value)
    tail = words[whole, np.arange(len(lengths))]  # zero-padded, so it is the remaining bytes as they are
    value = np.where(lengths % 4 != 0, (value ^ tail) * factor, value)
    value ^= value >> np.uint32(13)
    value *= factor
    return value ^ value >> np.uint32(15)
