"""The C library's heap, where it is glibc's."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h
SMALL, LARGE, SPARE = 1 << 20, 32 << 20, 256 << 20


@contextmanager
def freed_at_once() -> Iterator[None]:
    """Inside, freed blocks of a megabyte and more go back to the system at once.

    glibc raises that limit to 32 MiB when large blocks are freed, and what is kept lies between full-precision weights that
    were needed for a moment: a quantised model came to five times its size.

    Behind this, the limit is where glibc has it, but of what is freed at the heap's end it keeps up to 256 MiB instead of 64:
    a policy that watches a chunk's attention crossed that border to and fro, and got its pages from the system anew each time.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if tune is None:
        yield
        return
    tune(MMAP_THRESHOLD, SMALL)
    try:
        yield
    finally:
        tune(MMAP_THRESHOLD, LARGE)
        tune(TRIM_THRESHOLD, SPARE)
