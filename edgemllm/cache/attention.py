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
from transformers import AttentionInterface

from edgemllm.cache.chunk import Chunk
from edgemllm.cache.coded_attention import coded
from edgemllm.cache.constant_layers import SharedLayer, read
from edgemllm.cache.kernels import attend, visible_slots, weighted
from edgemllm.cache.kv_cache import KVCache
from edgemllm.cache.managed_layer import ManagedLayer
from edgemllm.cache.rope import rotate_queries
from edgemllm.cache.scores import OBSERVED_ROWS, attention_weights
from edgemllm.cache.straight import straight

NAME = "edgemllm"


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
    layer, own = kv_cache.layers[module.layer_idx], True
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if isinstance(layer, SharedLayer):  # what stays in its source is decided by that layer's queries
        layer, own = layer.source, False
        rotation = layer.numbering.rotation(kv_cache.now, slice(layer.length - query.shape[2], None))
    else:
        assert isinstance(layer, ManagedLayer)
        rotation = kv_cache.now.rotation
        if layer.policy.query_window:
            layer.remember_queries(query, scale)
    return attended(layer, rotate_queries(query, rotation), scale, own).transpose(1, 2).contiguous(), None


def attended(layer: ManagedLayer, query: Tensor, scale: float, own: bool = True) -> Tensor:
    """Attend from rotated query (B, H, q, D), which the policy sees if they are the layer's own; returns (B, H, q, D)."""
    assert layer.now is not None
    now, count = layer.now, query.shape[2]
    watched = min(count, layer.policy.observe_window) if own else 0
    mask = visible_slots(layer, now.chunk, *query.shape[1:3])
    if mask is None and (codes := coded(layer, query)):
        weights = codes.weights(query, scale)
        if watched:
            layer.show(weights)
        return codes.output(weights).to(query.dtype)
    key, value = read(layer, now)
    if watched == count and mask is None:  # made once, weights serve the output too
        parts = [weighted(weights, value) for weights in _watch(layer, query, key, scale, watched)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)
    out = attend(query, key, value, mask, scale)
    for _ in _watch(layer, query, key, scale, watched):
        pass
    return out


def _watch(layer: ManagedLayer, query: Tensor, key: Tensor, scale: float, watched: int) -> Iterator[Tensor]:
    """Let the policy see the attention of the last `watched` queries, and pass it on in parts (B, H, rows, L up to them).

    Each part of the rows sees every key, so watching in parts is exact; later rows hide their future from earlier ones.
    """
    count, length = query.shape[2], key.shape[2]
    for start in range(count - watched, count, OBSERVED_ROWS):
        stop = min(start + OBSERVED_ROWS, count)
        weights = attention_weights(query[:, :, start:stop], key[:, :, : length - count + stop], scale)
        layer.show(weights)
        yield weights


AttentionInterface.register(NAME, attention)


def forward(text_model: Any, cache: KVCache, chunk: Chunk) -> Tensor:
    """Run a chunk through the language model; returns hidden states (B, q, E)."""
    cache.begin(chunk)
    return run(text_model, cache)


def run(text_model: Any, cache: KVCache) -> Tensor:
    """Run the pass that was started; returns hidden states (B, q, E)."""
    chunk = cache.now.chunk
    alone = chunk.embeds.shape[:2] == (1, 1) and chunk.deepstack is None
    if alone and (line := straight(text_model)) is not None:
        return line(cache, attended)
    zeros = torch.zeros(chunk.embeds.shape[:2], dtype=torch.long, device=chunk.embeds.device)
    more: dict[str, Any] = {}
    if chunk.deepstack is not None:  # zero for text, so that it may be added everywhere
        everywhere = torch.ones(zeros.shape, dtype=torch.bool, device=zeros.device)
        more = {"visual_pos_masks": everywhere, "deepstack_visual_embeds": [level.flatten(0, 1) for level in chunk.deepstack]}
    if chunk.tokens is not None:
        more["per_layer_inputs"] = text_model.get_per_layer_inputs(chunk.tokens, None)
    more[cache_keyword(type(text_model).forward)] = cache
    out = text_model(inputs_embeds=chunk.embeds, position_ids=zeros, use_cache=True, kv_cache=cache, **more)
    cache.now.read.clear()  # not held until the next pass
    hidden: Tensor = out.last_hidden_state
    return hidden


@functools.cache
def cache_keyword(forward: Callable[..., Any]) -> str:
    """Return what a model's `forward` calls its cache: `cache` since transformers 5.24, `past_key_values` before."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
