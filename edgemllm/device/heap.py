"""Control the C library's heap, where it is glibc's; elsewhere nothing here has an effect."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h
SMALL, LARGE = 1 << 20, 32 << 20
KEPT = 256 << 20
"""Freed bytes at the heap's end that a process keeps for its next steps, once a model is loaded (glibc: at most 64 MiB)."""

T = TypeVar("T")


@contextmanager
def release_freed_pages() -> Iterator[None]:
    """Return freed memory of a megabyte and more to the system at once, while inside; keep it for the next steps afterwards.

    glibc raises both limits when large blocks are freed, and what it keeps, between full-precision weights that were needed
    for a moment and after them, made a quantised model five times its size. Afterwards a policy that watches a chunk's
    attention allocates and frees more than glibc keeps, and would get its pages from the system anew each time.
    """
    _tune(MMAP_THRESHOLD, SMALL)
    _tune(TRIM_THRESHOLD, SMALL)
    try:
        yield
    finally:
        _tune(MMAP_THRESHOLD, LARGE)
        _tune(TRIM_THRESHOLD, KEPT)


def trimmed(parts: Iterable[T], every: int) -> Iterator[T]:
    """Iterate over `parts`; after each `every` of them, return all freed pages to the system, also those between blocks in use.

    torch asks for aligned blocks, and glibc (2.36) fits none into the gap that an equal one left once something small lies in
    its margins: by chance, the heap grows with every block for a while. A model in nf4 peaked at 1.2 to 1.7 times its size.
    """
    for number, part in enumerate(parts, 1):
        yield part
        if number % every == 0:
            _call("malloc_trim", 0)


def _tune(parameter: int, value: int) -> None:
    _call("mallopt", parameter, value)


def _call(name: str, *arguments: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*arguments)
