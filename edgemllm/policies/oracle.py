"""oracle: a control that knows what will be asked. Not a method: it shows what a cache of this size could know.

Whoever runs the stream marks the tokens that carry facts in the slots `fact` (as `edgemllm recall` does); they stay, with the
first tokens of the stream, without which language models fail, and the newest of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgemllm.lazy import Tensor, torch
from edgemllm.policies.base import CachePolicy

if TYPE_CHECKING:
    from edgemllm.cache.layer import CacheLayer


@dataclass(frozen=True)
class Oracle(CachePolicy):
    """Keeps marked tokens, then the newest."""

    buffers: ClassVar[tuple[str, ...]] = ("fact",)

    sinks: int = 4
    """First tokens of the stream that stay while facts leave room."""

    def score(self, layer: CacheLayer) -> Tensor:
        index = torch.arange(layer.length, device=layer.device)
        return index + layer.length * ((index < self.sinks) + 2 * layer.buffer("fact"))
