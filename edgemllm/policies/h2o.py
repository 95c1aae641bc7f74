"""H2O: heavy hitters by accumulated attention plus a recent window (https://arxiv.org/abs/2306.14048).

Every cached token sums the attention that all later queries, since it came, have paid to it:

    S_j = sum_i A_ij

Kept are the largest sums and the recent tokens, for every KV head alone (query heads that share one: their mean), at every
step. Follows `utils_real_drop` of FMInference/H2O with keys unrotated, its streaming form. Sums are float32 and are never
normalised, as published: old tokens have the advantage. Here room is made before tokens come in instead of after.

As published: `slack=1`, and `positions=cache` (the default) for the streaming form, `positions=original` for the plain one. A
prompt longer than the budget is read in chunks, with a choice before each, instead of at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgemllm.lazy import Tensor
from edgemllm.policies.base import ALL, CachePolicy, Share

if TYPE_CHECKING:
    from edgemllm.cache.layer import CacheLayer


@dataclass(frozen=True)
class H2O(CachePolicy):
    """Heavy hitters + recent."""

    buffers: ClassVar[tuple[str, ...]] = ("mass",)

    recent: Share = 0.5
    """Share of the budget for the newest tokens (published: as many as heavy hitters)."""

    observe_window: ClassVar[int] = ALL

    def minimum(self) -> int:
        return 2

    def observe(self, layer: CacheLayer, attention: Tensor) -> None:
        layer.buffer("mass").add_(attention.sum(2))

    def score(self, layer: CacheLayer) -> Tensor:
        return layer.buffer("mass")

    def protected(self, layer: CacheLayer, size: int) -> tuple[int, int]:
        return 0, round(self.recent * size)
