"""Inf-MLLM: recent tokens plus "attention saddles", chosen anew at every prompt (https://arxiv.org/abs/2409.09086).

Let Q be the retrieval window, the latest queries, and P the cached tokens older than the recent ones. A past token j is worth

    S_j + D_j,   S_j = mean over the window's rows of the attention to j,   D_j = -bias * age_j / |P|

where age 0 is the newest past token: the linear attention bias lets old winners make room. Kept are the best past tokens
and always the recent ones; positions are re-assigned inside the cache.

In the paper the window is the new prompt: `window=prompt`. By default it is the latest 32 queries, whatever they belong to:
of a longer prompt its end, and after a shorter one also what came before it (footage, the last answer). The paper evicts
when a prompt comes; a hard budget also has to while footage or an answer fills it, and then the latest queries score.

As published: `positions=cache` (the default), `window=prompt`, `sinks=0`, room made once a prompt (any `slack`). The public
text of the paper leaves open the split, the scale of the bias and whether heads share one choice: those are fields, their
sweep is in docs/log.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from edgemllm.lazy import Tensor, torch
from edgemllm.policies.base import CachePolicy, Count, Share

if TYPE_CHECKING:
    from edgemllm.cache.layer import CacheLayer


@dataclass(frozen=True)
class InfMLLM(CachePolicy):
    """Recent + relevant tokens, scored by the retrieval window with a linear age bias."""

    window: Count | Literal["prompt"] = 32
    """Retrieval window: this many latest queries score the cache; prompt: just those of the newest prompt (the paper)."""

    longest: Count = 128
    """With window=prompt, queries that are kept; of a longer prompt the last ones score, as they do in footage and answers."""

    recent: Share = 0.25
    """Share of the budget always kept for the newest tokens, never less than the window."""

    bias: float = 0.01
    """b: penalty of the oldest past token relative to the newest. The paper sweeps it; too small, and old winners never go."""

    sinks: int = 4
    """First tokens of the stream that are never evicted (the paper relies on their score; the bias hits them most)."""

    takes_focus: ClassVar[bool] = True

    shared_heads: bool = True
    """One choice for all heads of a layer, by their mean score; false: every KV head chooses for itself."""

    @property
    def query_window(self) -> int:
        return self.longest if self.window == "prompt" else self.window

    def minimum(self) -> int:
        return self.sinks + self.query_window + 1

    def score(self, layer: CacheLayer) -> Tensor:
        attention = layer.window_attention(self._rows(layer))
        rows = attention.shape[2]
        # Inside the window a token is seen by fewer rows; those are recent tokens, whose score does not matter.
        score = attention.sum(2) / rows
        past = layer.length - self._recent(layer)
        age = torch.arange(past - 1, -1, -1, device=layer.device) / max(past, 1)
        score[..., :past] -= self.bias * age
        return score

    def protected(self, layer: CacheLayer, size: int) -> tuple[int, int]:
        return self.sinks, self._recent(layer)

    def after_prefill(self, layers: Sequence[CacheLayer]) -> None:
        # The prompt has scored the cache: make room for the answer now, in one go.
        for layer in layers:
            if layer.budget is not None and layer.length > (size := layer.budget - self.evict_at_least(layer.budget)):
                self.compress(layer, max(size, self.minimum()))

    def _recent(self, layer: CacheLayer) -> int:
        budget = layer.budget or layer.length
        return min(max(round(self.recent * budget), self._rows(layer)), layer.length)

    def _rows(self, layer: CacheLayer) -> int:
        """Queries of the window now. Those of an answer join its prompt's; before a prompt's first token there is no window."""
        since = layer.counts.seen - layer.counts.prompt if self.window == "prompt" else 0
        return min(since or self.query_window, self.query_window)
