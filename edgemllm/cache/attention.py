"""The one attention function, registered with transformers as "edgemllm": attend, let the policy watch.

The model is called with position_ids = 0, which makes its own rotary embedding the identity. An implementation name
without a mask function gets no mask from transformers, so ours is built here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface

from edgemllm.cache.chunk import Chunk
from edgemllm.cache.forward_pass import Pass
from edgemllm.cache.kv_cache import KVCache
from edgemllm.cache.layer import CacheLayer
from edgemllm.cache.rope import rotate_queries
from edgemllm.cache.scores import OBSERVED_ROWS, attention_weights, causal_mask, group_mean

NAME = "edgemllm"
CPU_FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
"""Behind scaled_dot_product_attention on a CPU; also returns the logarithm of what each row was divided by."""


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
    """Attend from unrotated query (B, H, q, D) to the layer's keys and value (B, H_kv, L, D); returns (B, q, H, D)."""
    if kv_cache is None or attention_mask is not None:
        raise RuntimeError("transformers no longer passes `kv_cache` through, or passes a mask: see tests/test_seam.py")
    layer = kv_cache.layers[module.layer_idx]
    policy = layer.policy
    count = query.shape[2]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if policy.query_window:
        layer.remember_queries(query, scale)
    query, key = rotate_queries(query, kv_cache.now.rotation), layer.rotated_keys()
    mask = _mask(layer, kv_cache.now.chunk, *query.shape[1:3])
    watched = min(count, policy.observe_window)
    if watched == count and mask is None:  # made once, weights serve the output too
        parts = [_weighted(weights, value) for weights in _watch(layer, kv_cache.now, query, key, scale, watched)]
        out = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
    else:
        out = _attend(query, key, value, mask, scale)
        for _ in _watch(layer, kv_cache.now, query, key, scale, watched):
            pass
    return out.transpose(1, 2).contiguous(), None


def _mask(layer: CacheLayer, chunk: Chunk, heads: int, count: int) -> Tensor | None:
    """What queries see where causality alone does not decide, (B, H | 1, q, L) or (q, L): in blocks and sliding layers."""
    block = chunk.block if count > 1 else None
    slides = layer.window is not None and (layer.length > layer.window or layer.policy.positions == "original")
    if block is None and not slides:
        return None
    mask = causal_mask(count, layer.length, layer.device)
    if block is not None:
        mask[:, -count:] |= (block[0] == block[0][:, None]) & (block[0] >= 0)
    if slides:
        mask = layer.inside_window(count) & mask
        mask = mask.repeat_interleave(heads // mask.shape[1], dim=1) if 1 < mask.shape[1] < heads else mask
    return mask


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    count, length = query.shape[2], key.shape[2]
    whole = mask is None and 1 < count == length
    if mask is None and 1 < count < length:
        if query.device.type == "cpu" and CPU_FLASH is not None:
            return _attend_twice(query, key, value, scale)
        # Flash and efficient kernels know "the last rows of a longer text"; other processors get the mask itself.
        mask = causal_lower_right(count, length) if query.is_cuda else causal_mask(count, length, query.device)
    grouped = query.shape[1] > key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, mask, is_causal=whole, scale=scale, enable_gqa=grouped)


def _attend_twice(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attend to a later chunk without building a mask, which costs about a sixth.

    Once over all earlier keys, once causally over the chunk itself; the two are merged by their softmax denominators.
    """
    assert CPU_FLASH is not None
    before = key.shape[2] - query.shape[2]
    past, past_sum = CPU_FLASH(query, key[:, :, :before], value[:, :, :before], scale=scale)
    own, own_sum = CPU_FLASH(query, key[:, :, before:], value[:, :, before:], is_causal=True, scale=scale)
    out: Tensor = own.lerp_(past, (past_sum - own_sum).sigmoid_()[..., None].to(own.dtype))
    return out


def _watch(layer: CacheLayer, now: Pass, query: Tensor, key: Tensor, scale: float, watched: int) -> Iterator[Tensor]:
    """Let the policy see the attention of the last `watched` queries, and hand it on in parts (B, H, rows, L up to them).

    Each part of the rows sees every key, so watching in parts is exact; later rows hide their future from earlier ones.
    """
    count, length = query.shape[2], key.shape[2]
    for start in range(count - watched, count, OBSERVED_ROWS):
        stop = min(start + OBSERVED_ROWS, count)
        visible = length - count + stop
        weights = attention_weights(query[:, :, start:stop], key[:, :, :visible], scale)
        now.observed = slice(visible - (stop - start), visible)
        seen = weights if layer.policy.per_query_head else group_mean(weights, key.shape[1])
        layer.policy.observe(layer, F.pad(seen, (0, length - visible)) if visible < length else seen)
        yield weights


def _weighted(weights: Tensor, value: Tensor) -> Tensor:
    """The output (B, H, rows, D) of attention weights (B, H, rows, l), the first l values, in one product a KV head."""
    values = value[:, :, : weights.shape[-1]].flatten(0, 1)
    grouped = weights.to(value.dtype).view(len(values), -1, weights.shape[-1])
    return torch.bmm(grouped, values).view(*weights.shape[:3], -1)


AttentionInterface.register(NAME, attention)


def forward(text_model: Any, cache: KVCache, chunk: Chunk) -> Tensor:
    """Run a chunk through the language model; returns hidden states (B, q, E)."""
    cache.begin(chunk)
    return run(text_model, cache)


def run(text_model: Any, cache: KVCache) -> Tensor:
    """Run the pass that has begun; returns hidden states (B, q, E)."""
    chunk = cache.now.chunk
    zeros = torch.zeros(chunk.embeds.shape[:2], dtype=torch.long, device=chunk.embeds.device)
    more: dict[str, Any] = {}
    if chunk.deepstack is not None:  # zero for text, so that it may be added everywhere
        everywhere = torch.ones(zeros.shape, dtype=torch.bool, device=zeros.device)
        more = {"visual_pos_masks": everywhere, "deepstack_visual_embeds": [level.flatten(0, 1) for level in chunk.deepstack]}
    more[cache_keyword(type(text_model).forward)] = cache
    out = text_model(inputs_embeds=chunk.embeds, position_ids=zeros, use_cache=True, kv_cache=cache, **more)
    hidden: Tensor = out.last_hidden_state
    return hidden


@functools.cache
def cache_keyword(forward: Callable[..., Any]) -> str:
    """Return what a model's `forward` calls its cache: `cache` since transformers 5.24, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
