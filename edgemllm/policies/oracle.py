"""oracle: a control that knows what will be asked. Not a method: it shows what a cache of this size could know.

Whoever runs the stream marks the tokens that carry facts in the slots `fact` (as `edgemllm recall` does); they stay, and the
newest of the others. Without marks it is `window`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from edgemllm.cache.layer import CacheLayer
from edgemllm.policies.base import CachePolicy


@dataclass(frozen=True)
class Oracle(CachePolicy):
    """Keeps marked tokens, then the newest."""

    buffers: ClassVar[tuple[str, ...]] = ("fact",)

    def score(self, layer: CacheLayer) -> Tensor:
        return torch.arange(layer.length, device=layer.device) + layer.length * layer.buffer("fact")
