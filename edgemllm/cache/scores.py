"""Attention weights, where a policy wants to see them."""

from __future__ import annotations

from edgemllm.lazy import Tensor, torch

OBSERVED_ROWS = 128
"""Queries whose attention is looked at together: bounds the scratch memory of policies that watch every query."""


def attention_weights(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """Return the causal attention of rotated queries (B, H, w, D), the last of the text, to rotated keys (B, H_kv, L, D).

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
    """Reduce (B, H, w, L) to (B, H_kv, w, L): the mean of the query heads that share a KV head."""
    return weights if weights.shape[1] == kv_heads else weights.unflatten(1, (kv_heads, -1)).mean(2)


def causal_mask(rows: int, length: int, device: torch.device) -> Tensor:
    """Return (rows, length) bool: the last `rows` of `length` tokens, each seeing itself and what came before."""
    return torch.ones(rows, length, dtype=torch.bool, device=device).tril(length - rows)
