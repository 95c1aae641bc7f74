"""window: the newest tokens only, the baseline "window attention" of the StreamingLLM paper.

Beyond its budget a real model loses its attention sinks and its perplexity blows up
(https://arxiv.org/abs/2309.17453, Fig. 1b): that is what the other policies are measured against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgemllm.lazy import Tensor, torch
from edgemllm.policies.base import CachePolicy

if TYPE_CHECKING:
    from edgemllm.cache.layer import CacheLayer


@dataclass(frozen=True)
class Window(CachePolicy):
    """Keeps the newest tokens."""

    def score(self, layer: CacheLayer) -> Tensor:
        return torch.arange(layer.length, device=layer.device).expand(1, 1, -1)
