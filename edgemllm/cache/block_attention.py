"""Attention to codes by PyTorch's operators, which unpack some slots at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from edgemllm.cache.layer import CacheLayer
from edgemllm.cache.rope import rotate

BLOCK = 4096
"""Slots that are unpacked at once."""


class BlockAttention:
    """Attends by a single rotated query (B, H, 1, D) to a layer of codes, in two steps: weights, and output."""

    def __init__(self, layer: CacheLayer) -> None:
        self.layer = layer
        self.blocks = [slice(start, min(start + BLOCK, layer.length)) for start in range(0, layer.length, BLOCK)]

    def weights(self, query: Tensor, scale: float) -> Tensor:
        """Return the attention to all slots, (B, H, 1, L) float32."""
        rows = (query * scale).unflatten(1, (self.layer.kv_heads, -1)).squeeze(3)
        numbering, now = self.layer.numbering, self.layer.now
        logits = []
        for block in self.blocks:
            keys = self.layer.store.read("keys", block)
            turned = keys if numbering.rotated else rotate(keys, numbering.rotation(now, block))
            logits.append(rows @ turned.mT)
        return torch.cat(logits, -1).float().softmax(-1).flatten(1, 2)[:, :, None]

    def output(self, weights: Tensor) -> Tensor:
        """Return what attends by the weights (B, H, 1, L): (B, H, 1, D)."""
        rows = weights.unflatten(1, (self.layer.kv_heads, -1)).squeeze(3).to(self.layer.dtype)
        parts = [rows[..., block] @ self.layer.store.read("values", block) for block in self.blocks]
        out: Tensor = sum(parts[1:], parts[0]).flatten(1, 2)[:, :, None]
        return out
