"""How many tokens go in at once: a chunk has to fit beside what the policy always keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgemllm.errors import DoesNotFitError

if TYPE_CHECKING:
    from edgemllm.policies.base import CachePolicy


def check(chunk: int, budget: int, policy: CachePolicy) -> None:
    """Raise DoesNotFitError for chunks too large for a budget of this many tokens per layer."""
    room = budget - policy.minimum()
    if chunk > room:
        raise DoesNotFitError(
            f"chunks of {chunk} tokens leave too little of a KV budget of {budget} tokens per layer",
            f"--chunk {room} or less, or a larger --kv-budget",
        )


def default(most: int, budget: int, policy: CachePolicy, indivisible: int) -> int:
    """Return at most `most` and a quarter of the budget: a chunk sees between budget - chunk and budget tokens.

    Where the budget allows, no less than the `indivisible` tokens of a picture that see each other both ways.
    """
    return max(1, min(max(min(most, budget // 4), indivisible), budget - policy.minimum()))
