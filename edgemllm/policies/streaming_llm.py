"""StreamingLLM: attention sinks plus a recent window (https://arxiv.org/abs/2309.17453).

Follows mit-han-lab/streaming-llm: keys unrotated, positions renumbered inside the cache, room made before tokens come in.
As published: `positions=cache` (the default) and `slack=1`; by default several tokens leave at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgemllm.lazy import Tensor, torch
from edgemllm.policies.base import CachePolicy

if TYPE_CHECKING:
    from edgemllm.cache.layer import CacheLayer


@dataclass(frozen=True)
class StreamingLLM(CachePolicy):
    """Keeps the first `sinks` tokens and the newest ones."""

    sinks: int = 4
    """First tokens of the stream, kept indefinitely (the paper's default)."""

    def minimum(self) -> int:
        return self.sinks + 1

    def score(self, layer: CacheLayer) -> Tensor:
        return torch.arange(layer.length, device=layer.device).expand(1, 1, -1)

    def protected(self, layer: CacheLayer, size: int) -> tuple[int, int]:
        return self.sinks, 0
