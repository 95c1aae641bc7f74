"""Attention weights, where a policy wants to see them, and the scores that it gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgemllm.errors import UsageError

if TYPE_CHECKING:
    from edgemllm.cache.layer import CacheLayer
    from edgemllm.cache.policy import CachePolicy

OBSERVED_ROWS = 128
"""Queries whose attention is looked at together: bounds the scratch memory of policies that watch every query."""


def attention_weights(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """Causal attention of rotated queries (B, H, w, D), the last of the text, to rotated keys (B, H_kv, L, D).

    (B, H, w, L) float32.
    """
    batch, heads, rows, size = queries.shape
    length = keys.shape[2]
    # One product a KV head and nothing else: at a single query every tensor operation more is felt.
    grouped = queries.reshape(batch * keys.shape[1], -1, size)
    logits = torch.baddbmm(queries.new_empty(1), grouped, keys.flatten(0, 1).mT, beta=0, alpha=scaling).float()
    logits = logits.view(batch, heads, rows, length)
    if rows > 1:  # all see what was before them
        logits[..., length - rows :].masked_fill_(~causal_mask(rows, rows, keys.device), -torch.inf)
    return logits.softmax(-1)


def group_mean(weights: Tensor, kv_heads: int) -> Tensor:
    """(B, H, w, L) to (B, H_kv, w, L): the mean of the query heads that share a KV head."""
    return weights if weights.shape[1] == kv_heads else weights.unflatten(1, (kv_heads, -1)).mean(2)


def causal_mask(rows: int, length: int, device: torch.device) -> Tensor:
    """(rows, length) bool: the last `rows` of `length` tokens, each seeing itself and what came before."""
    return torch.ones(rows, length, dtype=torch.bool, device=device).tril(length - rows)


def checked(policy: CachePolicy, layer: CacheLayer, score: object) -> Tensor:
    """A policy's score as a float32 tensor of its own on the layer's device. Raises UsageError for what is no score.

    Looking at values makes a GPU wait, so there only a layer's first compaction does, and only under policies from outside.
    """
    name, heads = type(policy).__name__, layer.kv_heads
    allowed = [(layer.keys.shape[0], count, layer.length) for count in sorted({1, heads})]
    if not isinstance(score, Tensor) or tuple(score.shape) not in allowed:
        got = tuple(score.shape) if isinstance(score, Tensor) else repr(score)[:40]
        raise UsageError(f"policy {name}: score() returned {got}, expected {' or '.join(map(str, allowed))}")
    score = score.to(layer.device, torch.float32, copy=True)
    shipped = type(policy).__module__.startswith("edgemllm.")
    if shipped or (layer.counts.compactions and layer.device.type != "cpu"):
        return score
    if not bool((score.amax(-1) > -torch.inf).all()):  # false for NaN too
        what = "NaN" if bool(score.isnan().any()) else "-inf for every slot of a head"
        raise UsageError(f"policy {name}: score() returned {what}, expected numbers, {tuple(score.shape)}")
    return score
