"""Attention to codes by Triton's kernels on CUDA."""

from __future__ import annotations

import functools
import logging
from typing import Any, ClassVar

import torch
from torch import Tensor

from edgemllm.cache.bits import scales_of
from edgemllm.cache.block_attention import BlockAttention
from edgemllm.cache.kernel_attention import KernelAttention
from edgemllm.cache.layer import CacheLayer
from edgemllm.cache.rope import Rotation

log = logging.getLogger(__name__)


@functools.cache
def kernels() -> Any:
    """Return the functions that launch Triton's kernels, None where Triton is not installed."""
    try:
        from edgemllm.cache import fused_kernels
    except ImportError:
        return None
    return fused_kernels


class FusedAttention(KernelAttention):
    """Reads codes by Triton's kernels; block by block once one of these has failed."""

    works: ClassVar[bool] = True

    @classmethod
    def reads(cls, layer: CacheLayer, query: Tensor) -> bool:
        """Return whether it is on CUDA, with Triton, and no kernel has failed."""
        return query.is_cuda and cls.works and kernels() is not None

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
        channels = self.layer.channels.get("keys")
        even = (channels.width, channels.mean) if channels else (None, None)
        kernels().scores(*self._columns("keys"), *even, *angles, rows, out, self.first, self.since)

    def _weighted(self, weights: Tensor) -> Tensor:
        added: Tensor = kernels().weighted(*self._columns("values"), weights, self.layer.widths[1], self.first, self.since)
        return added

    def _columns(self, name: str) -> tuple[Tensor, Tensor]:
        """Return codes and scales of all slots."""
        return self.layer.slots.tensors[name], self.layer.slots.tensors[scales_of(name)]
