"""Threads that wait for each other inside compiled loops, for which Numba has nothing of its own on a processor.

A module of its own, as it needs the extra `cpu`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from edgemllm.loops.compiled import compiled

PATIENCE = 500
"""Looks before a thread that waits lets others run: on a busy machine the one that it waits for."""
LET_GO = -(1 << 62)
"""Put in place of a count, it lets everybody go who waits for it."""

sched_yield = types.ExternalFunction("sched_yield", types.int32())


@compiled
def meet(arrived: Any, threads: int) -> None:
    """Return when all `threads` are here. `arrived` (1,) int64 counts them, at this meeting and all before it."""
    if threads > 1:
        wait_for(arrived, count_in(arrived) // threads * threads + threads, 1 << 62)


@compiled
def wait_for(count: Any, goal: int, looks: int) -> bool:
    """Return whether `count` (1,) int64 reached `goal`, or is negative, within this many looks."""
    for look in range(looks):
        seen = _seen(count)
        if seen < 0 or seen >= goal:
            return True
        if look > PATIENCE:
            sched_yield()
    return False


@compiled
def count_in(count: Any) -> Any:
    """Add one, and return what it was before."""
    return _add(count)


@intrinsic  # type: ignore[untyped-decorator]
def _add(context: Any, count: Any) -> Any:
    """Add one at once, so that no other thread's is lost, and return what it was before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", _first(context, builder, signature, arguments), ir.IntType(64)(1), "seq_cst")

    return types.int64(count), generate


@intrinsic  # type: ignore[untyped-decorator]
def _seen(context: Any, count: Any) -> Any:
    """Return the number, and with it see all that the threads which added to it wrote before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_first(context, builder, signature, arguments), "acquire", 8)

    return types.int64(count), generate


def _first(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Return the address of an array's first number."""
    return context.make_array(signature.args[0])(context, builder, arguments[0]).data
