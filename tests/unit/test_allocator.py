"""Blocks of a megabyte, taken and freed in a thread, are the same pages again."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

ROUNDS = 500
SCRIPT = f"""
import resource, sys, threading
from cdc.allocator import keep_freed

if sys.argv[1] == "kept":
    keep_freed()

def work():
    for _ in range({ROUNDS}):
        blocks = [bytearray(1 << 20) for _ in range(3)]

thread = threading.Thread(target=work)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages that the kernel had to give."""
    return int(subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_freed_memory_is_kept() -> None:
    assert faults("kept") < 10_000 < ROUNDS * 256 / 2
    assert faults("as it is") > faults("kept")
