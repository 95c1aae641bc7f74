"""Attention weights, where a policy wants to see them."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_weights(queries: Tensor, keys: Tensor, scaling: float, window: int, each: bool = False) -> Tensor:
    """Causal attention of the last `window` rotated queries to rotated keys, (B, H_kv, w, L) float32, group mean.

    `each`: of every query head, (B, H, w, L).
    """
    batch, heads, count, size = queries.shape
    kv_heads, length = keys.shape[1:3]
    grouped = (queries[:, :, count - window :] * scaling).reshape(batch, kv_heads, heads // kv_heads * window, size)
    logits = (grouped @ keys.mT).view(batch, kv_heads, -1, window, length).float()
    if window > 1:  # every row sees what was before the window
        logits[..., length - window :].masked_fill_(~causal_mask(window, window, keys.device), -torch.inf)
    weights = logits.softmax(-1)
    return weights.flatten(1, 2) if each else group_mean(weights.flatten(1, 2), kv_heads)


def group_mean(weights: Tensor, kv_heads: int) -> Tensor:
    """(B, H, w, L) to (B, H_kv, w, L): the mean of the query heads that share a KV head."""
    return weights if weights.shape[1] == kv_heads else weights.unflatten(1, (kv_heads, -1)).mean(2)


def causal_mask(rows: int, length: int, device: torch.device) -> Tensor:
    """(rows, length) bool: the last `rows` of `length` tokens, each seeing itself and what came before."""
    return torch.ones(rows, length, dtype=torch.bool, device=device).tril(length - rows)
