"""mine: every third token, and the newest."""

from dataclasses import dataclass

import torch
from torch import Tensor

from edgemllm import CacheLayer, CachePolicy
from edgemllm.policies.base import Count


@dataclass(frozen=True)
class Mine(CachePolicy):
    """Keep every third token and the newest."""

    every: Count = 3
    """Distance of the tokens that stay."""

    def score(self, layer: CacheLayer) -> Tensor:
        index = torch.arange(layer.length, device=layer.device)
        return (index + layer.length * (index % self.every == 0)).expand(1, 1, -1)

    def protected(self, layer: CacheLayer, size: int) -> tuple[int, int]:
        return 0, 32
