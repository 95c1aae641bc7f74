"""The one attention function, registered with transformers as "edgemllm": rotate, attend, let the policy watch.

The model is called with position_ids = 0, which makes its own rotary embedding the identity. An implementation name
without a mask function gets no mask from transformers, so ours is built here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface

from edgemllm.cache.layer import KVCache, attention_weights, causal_mask, rotate_queries
from edgemllm.cache.positions import rotate

NAME = "edgemllm"
OBSERVED_ROWS = 128
"""Queries whose attention is looked at together: bounds the scratch memory of policies that watch every query."""


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    kv_cache: KVCache | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend from query (B, H, q, D) to key and value (B, H_kv, L, D), q and k unrotated; returns (B, q, H, D)."""
    if kv_cache is None or attention_mask is not None:
        raise RuntimeError("transformers no longer passes `kv_cache` through, or passes a mask: see tests/test_seam.py")
    layer = kv_cache.layers[module.layer_idx]
    policy = layer.policy
    heads, count = query.shape[1:3]
    length = key.shape[2]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if policy.query_window:
        layer.remember_queries(query, scale)

    rotation = layer.rotation()
    query, key = rotate_queries(query, rotation), rotate(key, rotation)
    mask = causal_mask(count, length, key.device) if 1 < count < length else None
    both_ways = layer.incoming.block is not None and count > 1
    if both_ways:
        mask = causal_mask(count, length, key.device)
        block = layer.incoming.block[0]
        mask[:, -count:] |= (block == block[:, None]) & (block >= 0)
    if layer.window is not None and (length > layer.window or policy.positions == "original"):
        mask = layer.inside_window(count) & (mask if both_ways else causal_mask(count, length, key.device))
        if 1 < mask.shape[1] < heads:
            mask = mask.repeat_interleave(heads // mask.shape[1], dim=1)
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None and 1 < count == length,
        scale=scale,
        enable_gqa=heads > key.shape[1],
    )

    # Each slice of rows sees every key, so watching in slices is exact; later rows hide their future from earlier ones.
    watched = min(count, policy.observe_window)
    for start in range(count - watched, count, OBSERVED_ROWS):
        stop = min(start + OBSERVED_ROWS, count)
        visible = length - count + stop
        weights = attention_weights(
            query[:, :, start:stop], key[:, :, :visible], scale, stop - start, each=policy.per_query_head
        )
        layer.rows = slice(visible - (stop - start), visible)
        policy.observe(layer, F.pad(weights, (0, length - visible)))
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)


def forward(text_model: Any, cache: KVCache, chunk: Any) -> Tensor:
    """Run a staged chunk through the language model; hidden states (B, q, E)."""
    cache.stage(chunk)
    zeros = torch.zeros(chunk.embeds.shape[:2], dtype=torch.long, device=chunk.embeds.device)
    more = {}
    if chunk.deep is not None:  # zero for text, so that it may be added everywhere
        everywhere = torch.ones(zeros.shape, dtype=torch.bool, device=zeros.device)
        more = {"visual_pos_masks": everywhere, "deepstack_visual_embeds": [level.flatten(0, 1) for level in chunk.deep]}
    out = text_model(
        inputs_embeds=chunk.embeds, position_ids=zeros, past_key_values=cache, use_cache=True, kv_cache=cache, **more
    )
    hidden: Tensor = out.last_hidden_state
    return hidden
