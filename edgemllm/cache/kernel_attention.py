"""Attention to codes by kernels that read them, whatever these are made with."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from edgemllm.cache.layer import CacheLayer
from edgemllm.cache.rope import Rotation, rotate

T = TypeVar("T")


class KernelAttention(ABC):
    """Attends by a single rotated query (B, H, 1, D) to keys and values that are both codes, in two steps: weights, and output.

    Kernels read slots `first` .. `since` - 1, as the others are exact.
    """

    def __init__(self, layer: CacheLayer) -> None:
        exact = layer.store.exact
        assert exact is not None
        self.layer, self.length, self.exact = layer, layer.length, exact
        self.first, self.since = exact.first(self.length), exact.since(self.length)
        self.index = self._common("exact slots", self._exact_slots)

    @classmethod
    @abstractmethod
    def reads(cls, layer: CacheLayer, query: Tensor) -> bool:
        """Return whether there are kernels here for the layer and the query."""

    def weights(self, query: Tensor, scale: float) -> Tensor:
        """Return the attention to all slots, (B, H, 1, L) float32."""
        rows = (query.float() * scale).reshape(len(query) * self.layer.kv_heads, -1, query.shape[-1])
        out = rows.new_empty(*rows.shape[:2], self.length)
        angles = self._angles()
        self._scores(rows, angles, out)
        turns = self._common("exact rotation", functools.partial(self._turned, *angles))
        keys = rotate(self.exact.rows("keys", self.length).float(), turns).flatten(0, 1)
        out.index_copy_(2, self.index, torch.bmm(rows, keys.mT))
        return out.softmax(-1).view(len(query), -1, 1, self.length)

    def output(self, weights: Tensor) -> Tensor:
        """Return what attends by the weights (B, H, 1, L): (B, H, 1, D) float32."""
        grouped = weights.view(len(weights) * self.layer.kv_heads, -1, self.length)
        rows = self.exact.rows("values", self.length).flatten(0, 1).float()
        out = self._restored(self._weighted(grouped), grouped).baddbmm_(grouped.index_select(2, self.index), rows)
        return out.view(*weights.shape[:3], -1)

    def _restored(self, added: Tensor, weights: Tensor) -> Tensor:
        """Undo what values were evened by, once they are added up (B * H_kv, g, D): channels are the same in all slots."""
        if "values" not in self.layer.channels:
            return added
        known, heads = self.layer.channels["values"], (-1, self.layer.kv_heads)
        whole = weights[..., self.first : self.since].sum(-1, keepdim=True).unflatten(0, heads)
        added.unflatten(0, heads).mul_(known.width.float()).addcmul_(whole, known.mean.float())
        return added

    @abstractmethod
    def _scores(self, rows: Tensor, angles: Rotation, out: Tensor) -> None:
        """Write the products of rows (B * H_kv, g, D) and coded keys to those slots of `out` (B * H_kv, g, L)."""

    @abstractmethod
    def _weighted(self, weights: Tensor) -> Tensor:
        """Return coded values, (B * H_kv, g, D), added up by weights (B * H_kv, g, L)."""

    def _angles(self) -> Rotation:
        """Return cos and sin of all slots, (B, H_kv | 1, L, R / 2)."""
        return self.layer.numbering.angles(self.layer.now)

    def _common(self, name: str, compute: Callable[[], T]) -> T:
        """Return what layers share that have the same slots and exact rows."""
        key = (name, self.length, self.first, self.since)
        return self.layer.numbering.common(self.layer.now, key, compute)

    def _turned(self, cos: Tensor, sin: Tensor) -> Rotation:
        """Return the rotation of exact rows."""
        cos, sin = cos.index_select(2, self.index), sin.index_select(2, self.index)
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)

    def _exact_slots(self) -> Tensor:
        """Return the slots with exact rows."""
        spans = (0, self.first), (self.since, self.length)
        return torch.cat([torch.arange(*span, device=self.layer.device) for span in spans])
