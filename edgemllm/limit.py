"""How far a cache without bound may grow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgemllm.errors import OutOfMemoryError

if TYPE_CHECKING:
    from edgemllm.launch import Launch
    from edgemllm.session import Session


def limit(launch: Launch) -> int | None:
    """Return how many tokens per layer a cache without bound may grow to in the memory there is."""
    return launch.plan.kv_budget_tokens if launch.budget is None else None


def check_limit(session: Session, most: int | None) -> None:
    """Raise OutOfMemoryError once a cache without bound holds more than `limit` allowed."""
    if most is not None and session.cache.seen > most:
        raise OutOfMemoryError(
            f"the cache holds all {session.cache.seen} tokens per layer, and memory has room for {most}",
            "choose a policy that evicts (edgemllm policies) with a --kv-budget",
        )
