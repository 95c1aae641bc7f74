"""Rotary positions that the cache owns: keys are stored unrotated and turned here, at attention time.

Re-rotating stored half-precision keys at every eviction drifts (54 % error after 1000 evictions in bf16); this does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Rotation = tuple[Tensor, Tensor]
"""cos and sin, each (B, H_kv | 1, L, R), R <= D rotated channels."""


class Rope:
    """A model's own rotary embedding, asked for any positions."""

    def __init__(self, rotary: nn.Module, axes: int = 1, step: int = 1, layer_type: str | None = None) -> None:
        self.rotary: Any = rotary
        self.axes = axes
        self.layer_type = layer_type
        """Which of its rotations, where a model has one a type of layer (Gemma 3)."""
        self.step = step
        """The largest gap between neighbouring positions in an intact prompt; wider gaps are closed to this."""

    def at(self, positions: Tensor, like: Tensor) -> Rotation:
        """The rotation for positions (A, B, h, L), h being H_kv or 1, in the type of `like`."""
        axes, batch, heads, length = positions.shape
        flat = positions.reshape(axes, batch, heads * length)
        kind = () if self.layer_type is None else (self.layer_type,)
        cos, sin = self.rotary(like, flat if axes > 1 else flat[0], *kind)
        # Where the rotary embedding scales (YaRN), the model has already scaled q and k at its position 0.
        scale = getattr(self.rotary, "_".join((*kind, "attention_scaling")), 1.0)
        if scale != 1.0:
            cos, sin = cos / scale, sin / scale
        return cos.view(batch, heads, length, -1), sin.view(batch, heads, length, -1)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn x (B, h, L, D); channels beyond the rotated ones pass unchanged (partial rotary)."""
    cos, sin = rotation
    turned = cos.shape[-1]
    if turned < x.shape[-1]:
        return torch.cat((rotate(x[..., :turned], rotation), x[..., turned:]), dim=-1)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def close_gaps(positions: Tensor, step: int = 1) -> Tensor:
    """Renumber (A, B, h, L) from 0 per head, keeping order, equality across axes and gaps up to `step`.

    For plain RoPE this is 0..L-1. For M-RoPE a frame keeps its height x width layout while evicted spans vanish;
    an intact prompt is unchanged.
    """
    axes, batch, heads, length = positions.shape
    values, order = positions.permute(1, 2, 0, 3).reshape(batch, heads, axes * length).sort(dim=-1)
    ranks = F.pad(values.diff(dim=-1).clamp(max=step).cumsum(dim=-1), (1, 0))
    dense = torch.zeros_like(values).scatter(-1, order, ranks.to(values.dtype))
    return dense.view(batch, heads, axes, length).permute(2, 0, 1, 3)
