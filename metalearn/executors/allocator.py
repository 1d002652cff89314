"""Freed memory stays with the process, where the C library can be asked for that.

A compiled step allocates and frees the same large arrays again and again. glibc hands blocks of
more than 32 MiB, and the end of its heap, back to the system at once, and the system clears every
page anew at its next use: a quarter of the time of a step of the pooled Conv4-64
(experiments/benchmarks/RESULTS.md). `malloc_trim` still gives memory back."""

from __future__ import annotations

import contextlib
import ctypes
from functools import cache

TRIM, MMAP = -1, -3  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
MOST = 1 << 30  # bytes: larger blocks are the system's as before
OLDER = 1 << 25  # what a glibc takes that refuses more


@cache
def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory, once per process; return whether it agreed.

    Returns False without glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ask = ctypes.CDLL(None).mallopt
        # The second only with the first: alone it would fix the size of blocks that are handed back
        # at 128 KiB.
        return any(ask(MMAP, size) for size in (MOST, OLDER)) and bool(ask(TRIM, MOST))
    return False
