"""How a single query attends to keys and values of fewer bits without unpacking a whole layer of them first.

On a processor with the extra `cpu` unpacking is part of compiled loops: PyTorch's operators take longer to unpack than to
attend in 16 bits (docs/measurements/kv-bits.md). Otherwise some slots at a time are unpacked.
"""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from edgemllm.cache.bits import EVENED, scales_of
from edgemllm.cache.layer import CacheLayer
from edgemllm.cache.rope import Rotation, rotate

T = TypeVar("T")
Array = np.ndarray[Any, Any]
BLOCK = 4096
"""Slots that are unpacked at once."""
SLOTS_EACH = 4096
"""A thread is worth starting for this many slots, counted over all KV heads."""


@functools.cache
def kernels() -> Any:
    """Return the compiled functions, None where Numba is not installed."""
    try:
        from edgemllm.cache import compiled
    except ImportError:
        return None
    return compiled


@functools.cache
def workers(threads: int) -> concurrent.futures.Executor:
    """Return threads for compiled functions, which do not hold Python's lock."""
    return concurrent.futures.ThreadPoolExecutor(threads, "codes")


def coded(layer: CacheLayer, query: Tensor) -> CompiledAttention | BlockAttention | None:
    """Return what answers a query (B, H, q, D) from the codes of the layer; None for several tokens, or without codes."""
    if not layer.bits.coded or query.shape[2] > 1:
        return None
    return CompiledAttention(layer) if _compiles(layer, query) else BlockAttention(layer)


def _compiles(layer: CacheLayer, query: Tensor) -> bool:
    assert layer.now is not None
    return (
        layer.bits.coded == ("keys", "values")
        and len(query) == 1
        and query.device.type == "cpu"
        and layer.now.rotation[0].shape[-1] in (0, query.shape[-1])
        and all(layer.slots.tensors[scales_of(name)].shape[3] <= 2 for name in layer.bits.coded)
        and kernels() is not None
    )


class BlockAttention:
    """The attention of a single rotated query (B, H, 1, D) to a layer of codes, in two steps: weights, and output."""

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


class CompiledAttention:
    """The same for a batch of one, compiled."""

    def __init__(self, layer: CacheLayer) -> None:
        exact = layer.store.exact
        assert exact is not None
        self.layer, self.length, self.exact, self.kernels = layer, layer.length, exact, kernels()
        self.first, self.since = exact.first(self.length), exact.since(self.length)
        self.index = self._common("exact slots", self._exact_slots)

    def weights(self, query: Tensor, scale: float) -> Tensor:
        """Return the attention to all slots, (1, H, 1, L) float32."""
        rows = (query.float() * scale).view(self.layer.kv_heads, -1, query.shape[-1])
        out = rows.new_empty(*rows.shape[:2], self.length)
        cos, sin = self._angles(rows)
        known = [each.numpy() for each in (*self._channels(rows), cos[0], sin[0], rows, out)]
        self._in_parts(functools.partial(self.kernels.scores, *self._coded("keys"), *known))
        turns = self._common("exact rotation", functools.partial(self._turned, cos, sin))
        keys = rotate(self.exact.rows("keys", self.length).float(), turns)
        out.index_copy_(2, self.index, torch.bmm(rows, keys[0].mT))
        return out.softmax(-1).view(1, -1, 1, self.length)

    def output(self, weights: Tensor) -> Tensor:
        """Return what attends by the weights (1, H, 1, L): (1, H, 1, D) float32."""
        grouped = weights.view(self.layer.kv_heads, -1, self.length)
        coded = self._coded("values")
        parts = self._in_parts(functools.partial(self._weighted, *coded, grouped))
        rows = self.exact.rows("values", self.length)[0].float()
        out: Tensor = sum(parts[1:], parts[0]).baddbmm_(grouped.index_select(2, self.index), rows)
        return out.view(1, weights.shape[1], 1, -1)

    def _weighted(self, codes: Array, scales: Array, weights: Tensor, start: int, stop: int) -> Tensor:
        out = weights.new_zeros(*weights.shape[:2], self.layer.widths[1])
        self.kernels.weighted(codes, scales, weights.numpy(), out.numpy(), start, stop)
        return out

    def _in_parts(self, work: Callable[[int, int], Any]) -> list[Any]:
        """Share the slots that are read from codes out to the threads that PyTorch may use."""
        count = self.since - self.first
        threads = min(torch.get_num_threads(), count * self.layer.kv_heads // SLOTS_EACH)
        if threads < 2:
            return [work(self.first, self.since)]
        ends = [self.first + count * part // threads for part in range(threads + 1)]
        return list(workers(threads).map(work, ends[:-1], ends[1:]))

    def _coded(self, name: str) -> tuple[Array, Array]:
        """Return the codes of all slots, and the scales of live ones."""
        slots = self.layer.slots
        return slots.tensors[name][0].numpy(), slots.live(scales_of(name))[0].float().numpy()

    def _channels(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the widths and means, (H_kv, D), that keys were evened by."""
        channels, shape = self.layer.channels, (len(rows), rows.shape[-1])
        if channels is None or self.layer.bits.keys != EVENED:
            return rows.new_ones(shape), rows.new_zeros(shape)
        return channels.width.float().view(shape), channels.mean.float().view(shape)

    def _angles(self, rows: Tensor) -> Rotation:
        """Return cos and sin of all slots, (1, H_kv | 1, L, D / 2); of an angle of 0 where positions rotate nothing."""
        cos, sin = self.layer.numbering.angles(self.layer.now)
        if cos.shape[-1]:
            return cos, sin
        still = rows.new_ones(1, 1, self.length, rows.shape[-1] // 2)
        return still, torch.zeros_like(still)

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
        return torch.cat((torch.arange(self.first), torch.arange(self.since, self.length)))
