"""random: a control that keeps a uniform sample of the stream, the same in every layer.

Every token draws a priority when it comes, from its place in the stream; the highest priorities stay, which is reservoir
sampling. A policy that does no better has learnt nothing from attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from edgemllm.lazy import Tensor
from edgemllm.policies.base import CachePolicy, Range

if TYPE_CHECKING:
    from edgemllm.cache.layer import CacheLayer

PRIME = 2**31 - 1


@dataclass(frozen=True)
class Random(CachePolicy):
    """A sample by priorities, and the newest tokens."""

    seed: Annotated[int, Range(0, PRIME)] = 1
    """Of the priorities."""

    recent: int = 32
    """Newest tokens that are always kept."""

    def minimum(self) -> int:
        return self.recent + 1

    def score(self, layer: CacheLayer) -> Tensor:
        # Two rounds of a multiplicative congruential generator: neighbours and seeds are far apart.
        place = layer.positions[0].long() + 7919 * (self.seed + 1)
        return place * 48271 % PRIME * 16807 % PRIME

    def protected(self, layer: CacheLayer, size: int) -> tuple[int, int]:
        return 0, self.recent
