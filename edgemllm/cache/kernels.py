"""How queries attend to keys: which kernel, and which mask it needs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

from edgemllm.cache.chunk import Chunk
from edgemllm.cache.layer import CacheLayer
from edgemllm.cache.scores import causal_mask

CPU_FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
"""Behind scaled_dot_product_attention on a CPU; also returns the logarithm of what each row was divided by."""
GROUPED_FLASH = torch.__version__ >= "2.13"
"""Whether that kernel knows grouped query heads. In 2.6 it reads beyond the keys; 2.13 is the oldest seen to work."""


def visible_slots(layer: CacheLayer, chunk: Chunk, heads: int, count: int) -> Tensor | None:
    """Return what queries see, (B, H | 1, q, L) or (q, L), in blocks and sliding layers; None: causality alone decides."""
    block = chunk.block if count > 1 and (layer.window is not None or not chunk.local) else None
    slides = layer.window is not None and (layer.length > layer.window or layer.mode == "original")
    if block is None and not slides:
        return None
    mask = causal_mask(count, layer.length, layer.device)
    if block is not None:
        mask[:, -count:] |= (block[0] == block[0][:, None]) & (block[0] >= 0)
    if slides:
        mask = _inside_window(layer, count) & mask
        mask = mask.repeat_interleave(heads // mask.shape[1], dim=1) if 1 < mask.shape[1] < heads else mask
    return mask


def _inside_window(layer: CacheLayer, count: int) -> Tensor:
    """Return which slots are inside the sliding window of each of the last `count` tokens, (B, H_kv | 1, count, L) bool.

    Distances are those of the policy's numbering, so that under `cache` what survived stays in sight.
    """
    assert layer.window is not None
    positions = layer.numbering.positions()[0]
    return positions[..., -count:, None] - positions[..., None, :] < layer.window


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attend causally, or as `mask` says, from query (B, H, q, D), the last of L tokens; returns (B, H, q, D)."""
    count, length = query.shape[2], key.shape[2]
    whole = mask is None and 1 < count == length
    grouped = query.shape[1] > key.shape[1]
    if grouped and mask is None and count == 1 and query.dtype == torch.float32 and query.device.type == "cpu":
        # The heads of a group as rows of one query read their keys once.
        rows = query.reshape(len(query), key.shape[1], -1, query.shape[-1])
        return F.scaled_dot_product_attention(rows, key, value, scale=scale).view(query.shape)
    if mask is None and 1 < count < length:
        if query.device.type == "cpu" and CPU_FLASH is not None and (GROUPED_FLASH or not grouped):
            return _attend_twice(query, key, value, scale)
        # Flash and efficient kernels know "the last rows of a longer text"; other processors get the mask itself.
        mask = causal_lower_right(count, length) if query.is_cuda else causal_mask(count, length, query.device)
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


def weighted(weights: Tensor, value: Tensor) -> Tensor:
    """Return the output (B, H, rows, D) of weights (B, H, rows, l) on the first l values, in one product per KV head."""
    values = value[:, :, : weights.shape[-1]].flatten(0, 1)
    grouped = weights.to(value.dtype).view(len(values), -1, weights.shape[-1])
    return torch.bmm(grouped, values).view(*weights.shape[:3], -1)
