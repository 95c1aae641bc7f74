"""Loops that Numba compiles for this processor, and the threads that share them out. Numba comes with the extra `cpu`."""

from __future__ import annotations

import concurrent.futures
import functools
import importlib
import itertools
import os
from collections.abc import Callable
from typing import Any

from edgemllm.lazy import torch

SUMS_IN_ANY_ORDER = {"nnan", "nsz", "arcp", "contract", "reassoc"}  # else a processor adds one number at a time

VALUES_EACH = 1 << 20
"""A thread is worth waking for this many weights."""


@functools.cache
def loops(name: str) -> Any:
    """Return a module of this folder that has compiled functions; None where Numba is not installed."""
    try:
        return importlib.import_module(f"edgemllm.loops.{name}")
    except ImportError:
        return None


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function when it is first called; once for a machine, where there is a folder to keep it in.

    Raises ImportError where Numba is not installed.
    """
    import numba

    compile_ = functools.partial(numba.njit, fastmath=SUMS_IN_ANY_ORDER, nogil=True, error_model="numpy")
    try:
        return compile_(cache=True)(function)
    except RuntimeError:
        return compile_()(function)


def in_parts(work: Callable[[int, int], Any], start: int, stop: int, parts: int) -> list[Any]:
    """Return what `work` makes of start .. stop - 1 in equal parts: the first in this thread, each other in one of its own.

    Compiled functions do not hold Python's lock.
    """
    if parts < 2:
        return [work(start, stop)]
    mine, *others = equal_parts(start, stop, parts)
    waiting = [_workers(parts - 1).submit(work, *span) for span in others]
    return [work(*mine), *(each.result() for each in waiting)]


def equal_parts(start: int, stop: int, parts: int) -> list[tuple[int, int]]:
    """Return where each part of start .. stop - 1 begins and ends."""
    return list(itertools.pairwise(start + (stop - start) * part // parts for part in range(parts + 1)))


def threads_for(values: int) -> int:
    """Return how many of the threads that PyTorch may use are worth waking for this many weights."""
    return max(min(torch.get_num_threads(), values // VALUES_EACH), 1)


@functools.cache
def _workers(threads: int) -> concurrent.futures.Executor:
    return concurrent.futures.ThreadPoolExecutor(threads, "compiled")


os.register_at_fork(after_in_child=_workers.cache_clear)  # threads stay with the parent
