"""glibc's allocator in a process that takes and frees blocks of a megabyte all the time, in several threads.

Left alone it gives such blocks back to the kernel and takes them anew, page by page: a fifth of the reader's CPU time
during a snapshot. And each thread has an arena of its own, which keeps what the others could use.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h
MAPPED_BYTES = 4 << 20  # a block above comes from the kernel and goes back; batches and zstd's tables are below
KEPT_BYTES = 32 << 20  # free at the end of an arena
ARENAS = 2


def keep_freed() -> None:
    """For a process at its start, before it has threads. Another C library than glibc is left as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((_MMAP_THRESHOLD, MAPPED_BYTES), (_TRIM_THRESHOLD, KEPT_BYTES), (_ARENA_MAX, ARENAS)):
            mallopt(parameter, value)
