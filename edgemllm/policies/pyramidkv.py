"""PyramidKV: SnapKV with more room in early layers (https://arxiv.org/abs/2406.02069).

With b the mean budget beside the window, the layers' budgets fall linearly from 2b - b/beta to b/beta:

    k_l = max - l (max - min) / (L - 1),   min = b / beta,   max = 2 b - min

Follows Zefan-Cai/PyramidKV, including its integer divisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgemllm.cache.layer import CacheLayer
from edgemllm.policies.base import fit
from edgemllm.policies.snapkv import SnapKV


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """SnapKV with linear layer budgets."""

    beta: int = 20
    """How pointed the pyramid is: the last layer gets 1/beta of the mean (released default 20)."""

    def allocate(self, layers: Sequence[CacheLayer], total: int, floor: int) -> list[int]:
        base = total // len(layers) - self.window
        wanted = [tokens + self.window for tokens in schedule(base, len(layers), self.beta)]
        return fit([float(size) for size in wanted], total, floor)


def schedule(base: int, layers: int, beta: int) -> list[int]:
    """Tokens beside the window for every layer, as released; their mean is `base` or a little more."""
    if layers == 1:
        return [base]
    low = base // beta
    high = 2 * base - low
    step = (high - low) // (layers - 1)
    return [high - number * step for number in range(layers)]
