"""How a single query attends to keys and values of fewer bits without unpacking a whole layer of them first.

PyTorch's operators take longer to unpack than to attend in 16 bits (docs/measurements/kv-bits.md). So unpacking is a part of
kernels where both keys and values are codes: on a processor of the extra `cpu`, on CUDA of Triton's. Otherwise some slots at a
time are unpacked.
"""

from __future__ import annotations

import concurrent.futures
import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from edgemllm.cache.bits import scales_of
from edgemllm.cache.layer import CacheLayer
from edgemllm.cache.rope import Rotation, rotate

log = logging.getLogger(__name__)
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
def fused() -> Any:
    """Return the functions that launch Triton's kernels, None where Triton is not installed."""
    try:
        from edgemllm.cache import fused
    except ImportError:
        return None
    return fused


@functools.cache
def workers(threads: int) -> concurrent.futures.Executor:
    """Return threads for compiled functions, which do not hold Python's lock."""
    return concurrent.futures.ThreadPoolExecutor(threads, "codes")


def coded(layer: CacheLayer, query: Tensor) -> KernelAttention | BlockAttention | None:
    """Return what answers a query (B, H, q, D) from the codes of the layer; None for several tokens, or without codes."""
    if not layer.bits.coded or query.shape[2] > 1:
        return None
    if layer.bits.coded == ("keys", "values"):
        if query.is_cuda and FusedAttention.works and fused() is not None:
            return FusedAttention(layer)
        if _compiles(layer, query):
            return CompiledAttention(layer)
    return BlockAttention(layer)


def _compiles(layer: CacheLayer, query: Tensor) -> bool:
    assert layer.now is not None
    return (
        len(query) == 1
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


class KernelAttention(ABC):
    """The same where kernels read the codes: of slots `first` .. `since` - 1, as the others are exact."""

    def __init__(self, layer: CacheLayer) -> None:
        exact = layer.store.exact
        assert exact is not None
        self.layer, self.length, self.exact = layer, layer.length, exact
        self.first, self.since = exact.first(self.length), exact.since(self.length)
        self.index = self._common("exact slots", self._exact_slots)

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
        out = self._weighted(grouped).baddbmm_(grouped.index_select(2, self.index), rows)
        return out.view(*weights.shape[:3], -1)

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


class CompiledAttention(KernelAttention):
    """By compiled loops on a processor, for a batch of one, heads of one or two groups, and rotations of whole heads."""

    def _scores(self, rows: Tensor, angles: Rotation, out: Tensor) -> None:
        known = [each.numpy() for each in (*self._channels(rows), angles[0][0], angles[1][0], rows, out)]
        self._in_parts(functools.partial(kernels().scores, *self._coded("keys"), *known))

    def _weighted(self, weights: Tensor) -> Tensor:
        parts = self._in_parts(functools.partial(self._part, *self._coded("values"), weights))
        whole: Tensor = sum(parts[1:], parts[0])
        return whole

    def _part(self, codes: Array, scales: Array, weights: Tensor, start: int, stop: int) -> Tensor:
        out = weights.new_zeros(*weights.shape[:2], self.layer.widths[1])
        kernels().weighted(codes, scales, weights.numpy(), out.numpy(), start, stop)
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
        if channels is None:
            return rows.new_ones(shape), rows.new_zeros(shape)
        return channels.width.float().view(shape), channels.mean.float().view(shape)

    def _angles(self) -> Rotation:
        """Return the same, (1, H_kv | 1, L, D / 2): of nothing where positions rotate nothing."""
        cos, sin = super()._angles()
        if cos.shape[-1]:
            return cos, sin
        still = torch.ones(1, 1, self.length, self.layer.widths[0] // 2)
        return still, torch.zeros_like(still)


class FusedAttention(KernelAttention):
    """By Triton's kernels on CUDA; block by block once one of these has failed."""

    works: ClassVar[bool] = True

    def weights(self, query: Tensor, scale: float) -> Tensor:
        """Return the attention to all slots, (B, H, 1, L) float32."""
        return self._attempt("weights", query, scale)

    def output(self, weights: Tensor) -> Tensor:
        """Return what attends by the weights (B, H, 1, L): (B, H, 1, D)."""
        return self._attempt("output", weights)

    def _attempt(self, step: str, *given: Any) -> Tensor:
        """Do a step by kernels, which are compiled at their first call: many things may be missing then, as a C compiler."""
        if self.works:
            try:
                found: Tensor = getattr(super(), step)(*given)
                return found
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                said = f"{type(error).__name__}: {error}".splitlines()[0]
                log.warning("fewer bits are unpacked by PyTorch, which is slower, as Triton fails here: %s", said)
                FusedAttention.works = False
        found = getattr(BlockAttention(self.layer), step)(*given)
        return found

    def _scores(self, rows: Tensor, angles: Rotation, out: Tensor) -> None:
        channels = self.layer.channels
        even = (channels.width, channels.mean) if channels else (None, None)
        fused().scores(*self._columns("keys"), *even, *angles, rows, out, self.first, self.since)

    def _weighted(self, weights: Tensor) -> Tensor:
        added: Tensor = fused().weighted(*self._columns("values"), weights, self.layer.widths[1], self.first, self.since)
        return added

    def _columns(self, name: str) -> tuple[Tensor, Tensor]:
        """Return codes and scales of all slots."""
        return self.layer.slots.tensors[name], self.layer.slots.tensors[scales_of(name)]
