"""Launches of caches that share one memory: each of a fixed size."""

from __future__ import annotations

from dataclasses import replace

from edgemllm.launch import Launch, prepare
from edgemllm.models.loading import Checkpoint
from edgemllm.planning.request import Request

MOST_TOKENS = 4096
"""What `--kv-budget auto` gives one of many caches, at most: the rest of the memory is for others."""


def bounded(request: Request, checkpoint: Checkpoint | None = None) -> Launch:
    """Return the launch of one cache that cannot grow. Raises as `prepare` does."""
    launch = prepare(request, checkpoint=checkpoint)
    tokens = launch.budget or launch.plan.kv_budget_tokens
    if request.kv_budget == "auto" and (launch.budget is None or tokens > MOST_TOKENS):
        launch = prepare(replace(request, kv_budget=str(min(tokens, MOST_TOKENS))), checkpoint=launch.checkpoint)
    return launch


def times(launch: Launch, count: int) -> Launch:
    """Return the launch of `count` such caches, planned together."""
    one = launch.plan
    total = one.total_bytes + (count - 1) * one.kv_bytes
    plan = replace(one, kv_bytes=count * one.kv_bytes, total_bytes=total, fits=total <= one.free_bytes)
    if one.fits and not plan.fits:
        plan = replace(plan, suggestions=(f"a --parallel below {count}, or a smaller --kv-budget",))
    return replace(launch, plan=plan)
