"""Control the C library's heap, where it is glibc's; elsewhere nothing here has an effect."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h
SMALL, LARGE = 1 << 20, 32 << 20


@contextmanager
def release_freed_pages() -> Iterator[None]:
    """Return freed blocks of a megabyte and more to the system at once, while inside.

    glibc raises that limit to 32 MiB when large blocks are freed, and what it keeps lies between full-precision weights that
    were needed for a moment: a quantised model came to five times its size. Afterwards the limit stays at these 32 MiB: once
    it was set, glibc no longer adjusts it.
    """
    _tune(MMAP_THRESHOLD, SMALL)
    try:
        yield
    finally:
        _tune(MMAP_THRESHOLD, LARGE)


def keep_heap(size: int) -> None:
    """Keep up to `size` freed bytes at the end of the heap from now on (glibc: 64 MiB) instead of returning them.

    A policy that watches a chunk's attention allocates and frees across that border, and would get its pages from the system
    anew each time.
    """
    _tune(TRIM_THRESHOLD, size)


def _tune(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(parameter, value)
