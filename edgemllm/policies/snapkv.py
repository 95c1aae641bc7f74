"""SnapKV: what the end of the prompt looks at, with its neighbours (https://arxiv.org/abs/2404.14469).

Let W be the last `window` queries of the prompt (the observation window). An earlier token is worth the attention that W pays
to it, pooled along the sequence so that a find keeps its neighbourhood:

    S_j = pool_k(sum_{i in W} A_ij)

Kept are the best and the window itself, once, when the prompt is in. Follows FasterDecoding/SnapKV, with the mean over the
query heads of a KV head, so that grouped queries keep their saving. While a stream overflows the budget, the same choice is
made with the latest queries (such a run is marked `streamed`).

As published: `positions=original`, and `rho` or a budget that the prompt does not exceed on its way in. By default survivors
are renumbered. `slack` matters only while a stream overflows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from edgemllm.lazy import Tensor, torch
from edgemllm.policies.base import Count, OneShot, Range

if TYPE_CHECKING:
    from edgemllm.cache.layer import CacheLayer


@dataclass(frozen=True)
class SnapKV(OneShot):
    """Observation window + pooled attention."""

    takes_focus: ClassVar[bool] = True

    window: Count = 32
    """Observation window: last queries of the prompt, always kept (released default 32)."""

    kernel: Annotated[int, Range(1, odd=True)] = 5
    """Width of the pooling, odd (released default 5; 7 in its LongBench runs)."""

    pooling: Literal["avg", "max"] = "avg"
    """How neighbours share (released default avg; max in its LongBench runs)."""

    @property
    def query_window(self) -> int:
        return self.window

    def minimum(self) -> int:
        return self.window + 1

    def score(self, layer: CacheLayer) -> Tensor:
        attention = layer.window_attention()
        score, window = attention.sum(2), attention.shape[2]
        past = layer.length - window
        if past > 0:
            functional = torch.nn.functional
            pool = functional.avg_pool1d if self.pooling == "avg" else functional.max_pool1d
            # As released: only the past is pooled, so the window does not leak into its neighbours.
            score[..., :past] = pool(score[..., :past], self.kernel, 1, self.kernel // 2)[..., :past]
        return score

    def protected(self, layer: CacheLayer, size: int) -> tuple[int, int]:
        return 0, self.window
