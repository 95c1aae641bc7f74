"""H2O as published, in a straight line: eager attention, and at every step all keys rotated, scored, chosen and copied.

After `utils_real_drop` of FMInference/H2O (https://arxiv.org/abs/2306.14048), its streaming form: keys unrotated, positions
renumbered, as many heavy hitters as recent tokens. Registered with transformers as "straight-h2o"; one KV head a query head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache

NAME = "straight-h2o"


class StraightH2O(DynamicCache):  # type: ignore[misc]
    """A growing cache that is cut back to `size` tokens after every step."""

    def __init__(self, rotary: Any, size: int) -> None:
        super().__init__()
        self.rotary, self.size = rotary, size
        self.mass: dict[int, Tensor] = {}


def rotate_half(x: Tensor) -> Tensor:
    """Swap the halves and negate the second, as in transformers."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attend from query (B, H, q, D) to key and value (B, H, L, D), q and k unrotated; then evict."""
    cache: StraightH2O = kwargs["h2o"]
    number, count, length = module.layer_idx, query.shape[2], key.shape[2]
    cos, sin = cache.rotary(key, torch.arange(length, device=key.device)[None])
    turned = key * cos + rotate_half(key) * sin
    cos, sin = cos[:, -count:], sin[:, -count:]
    query = query * cos + rotate_half(query) * sin
    logits = query @ turned.mT * kwargs["scaling"]
    if count > 1:
        future = torch.ones(count, length, dtype=torch.bool, device=key.device).triu(length - count + 1)
        logits = logits.masked_fill(future, -torch.inf)
    weights = logits.softmax(-1, dtype=torch.float32).to(query.dtype)
    out = weights @ value
    mass = weights.sum(2)
    if number in cache.mass:
        mass[..., : length - count] += cache.mass[number]
    if length > cache.size:
        recent = cache.size // 2
        heavy = mass[..., : length - recent].topk(cache.size - recent, dim=-1).indices.sort(-1).values
        tail = torch.arange(length - recent, length, device=key.device).expand(*mass.shape[:2], -1)
        kept = torch.zeros_like(mass, dtype=torch.bool).scatter(-1, torch.cat((heavy, tail), -1), True)
        layer, shape = cache.layers[number], (*mass.shape[:2], cache.size, key.shape[-1])
        layer.keys, layer.values = key[kept].view(shape), value[kept].view(shape)
        mass = mass[kept].view(*shape[:3])
    cache.mass[number] = mass
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
