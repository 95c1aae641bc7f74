"""Whether what a policy returned is a score, and counts of protected tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgemllm.errors import UsageError
from edgemllm.lazy import Tensor, torch

if TYPE_CHECKING:
    from edgemllm.cache.layer import CacheLayer


def checked(policy: object, layer: CacheLayer, score: object) -> Tensor:
    """Return a policy's score as a float32 tensor of its own on the layer's device. Raises UsageError for what is no score.

    Looking at values makes a GPU wait, so there only a layer's first compaction does, and only under policies from outside.
    """
    name, heads = type(policy).__name__, layer.kv_heads
    allowed = [(layer.positions.shape[1], count, layer.length) for count in sorted({1, heads})]
    if not isinstance(score, torch.Tensor) or tuple(score.shape) not in allowed:
        got = tuple(score.shape) if isinstance(score, torch.Tensor) else repr(score)[:40]
        raise UsageError(f"policy {name}: score() returned {got}, expected {' or '.join(map(str, allowed))}")
    score = score.to(layer.device, torch.float32, copy=True)
    shipped = type(policy).__module__.startswith("edgemllm.")
    if shipped or (layer.counts.compactions and layer.device.type != "cpu"):
        return score
    if not bool((score.amax(-1) > -torch.inf).all()):  # false for NaN too
        what = "NaN" if bool(score.isnan().any()) else "-inf for every slot of a head"
        raise UsageError(f"policy {name}: score() returned {what}, expected numbers, {tuple(score.shape)}")
    return score


def protected_counts(policy: object, layer: CacheLayer, counts: object) -> tuple[int, int]:
    """Return what a policy's protected() gave, each count at most the layer's length. Raises UsageError for no two counts."""
    if not isinstance(counts, tuple) or len(counts) != 2 or not all(isinstance(count, int) and count >= 0 for count in counts):
        got = repr(counts)[:40]
        raise UsageError(f"policy {type(policy).__name__}: protected() returned {got}, expected two counts such as (4, 32)")
    return min(counts[0], layer.length), min(counts[1], layer.length)
