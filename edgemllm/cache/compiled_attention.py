"""Attention to codes by compiled loops on a processor, which the extra `cpu` brings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgemllm.cache.bits import scales_of
from edgemllm.cache.kernel_attention import KernelAttention
from edgemllm.cache.layer import CacheLayer
from edgemllm.cache.rope import Rotation
from edgemllm.loops.compiled import in_parts, loops

Array = np.ndarray[Any, Any]
SLOTS_EACH = 4096
"""A thread is worth starting for this many slots, counted over all KV heads."""


class CompiledAttention(KernelAttention):
    """Reads codes by compiled loops."""

    @classmethod
    def reads(cls, layer: CacheLayer, query: Tensor) -> bool:
        """Return whether a CPU with Numba has a batch of one, heads of one or two groups, and rotations of whole heads."""
        assert layer.now is not None
        return (
            len(query) == 1
            and query.device.type == "cpu"
            and layer.now.rotation[0].shape[-1] in (0, query.shape[-1])
            and all(layer.slots.tensors[scales_of(name)].shape[3] <= 2 for name in layer.bits.coded)
            and loops("codes") is not None
        )

    def _scores(self, rows: Tensor, angles: Rotation, out: Tensor) -> None:
        known = [each.numpy() for each in (*self._channels(rows), angles[0][0], angles[1][0], rows, out)]
        self._in_parts(functools.partial(loops("codes").scores, *self._coded("keys"), *known))

    def _weighted(self, weights: Tensor) -> Tensor:
        parts = self._in_parts(functools.partial(self._part, *self._coded("values"), weights))
        whole: Tensor = sum(parts[1:], parts[0])
        return whole

    def _part(self, codes: Array, scales: Array, weights: Tensor, start: int, stop: int) -> Tensor:
        out = weights.new_zeros(*weights.shape[:2], self.layer.widths[1])
        loops("codes").weighted(codes, scales, weights.numpy(), out.numpy(), start, stop)
        return out

    def _in_parts(self, work: Callable[[int, int], Any]) -> list[Any]:
        """Share the slots that are read from codes out to the threads that PyTorch may use."""
        count = self.since - self.first
        threads = min(torch.get_num_threads(), count * self.layer.kv_heads // SLOTS_EACH)
        return in_parts(work, self.first, self.since, threads)

    def _coded(self, name: str) -> tuple[Array, Array]:
        """Return the codes of all slots, and the scales of live ones."""
        slots = self.layer.slots
        return slots.tensors[name][0].numpy(), slots.live(scales_of(name))[0].float().numpy()

    def _channels(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the widths and means, (H_kv, D), that keys were evened by."""
        channels, shape = self.layer.channels.get("keys"), (len(rows), rows.shape[-1])
        if channels is None:
            return rows.new_ones(shape), rows.new_zeros(shape)
        return channels.width.float().view(shape), channels.mean.float().view(shape)

    def _angles(self) -> Rotation:
        """Return cos and sin of all slots, (1, H_kv | 1, L, D / 2): of nothing where positions rotate nothing."""
        cos, sin = super()._angles()
        if cos.shape[-1]:
            return cos, sin
        still = torch.ones(1, 1, self.length, self.layer.widths[0] // 2)
        return still, torch.zeros_like(still)
