"""edge: keep tokens that were once attended to strongly and are not repeated later. Our own; see docs/design.md, docs/log.md.

A cached token j is worth

    S_j = M_j (1 - max(0, max_{i > j} cos(k_i, k_j)))        over keys i that were ever cached beside j

M_j, its *memory*, is the largest attention that any query ever paid to it, over all query heads that share its KV head: the
maximum, because a fact is looked at once and sharply, and remembered, because the look passes. The second factor is its
*novelty*: a picture's key with a near twin among later ones is redundant, the later one stays. Text has no such factor, as its
keys resemble each other whatever they say. One choice for all heads of a layer keeps a token whole; the newest tokens always
stay; positions are renumbered. No probe prompt is needed.

A share of the slots beside the newest goes to the largest values ||v_j|| among the others, as in InfiniPot-V: what attention
has not yet looked at, but would be moved by. Prose needs it; facts need the score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgemllm.cache.chunk import Modality
from edgemllm.lazy import Tensor, torch
from edgemllm.policies.base import ALL, CachePolicy, Share

if TYPE_CHECKING:
    from edgemllm.cache.layer import CacheLayer

PAIRS = 1 << 16
"""Keys compared at once, times the keys they are compared with: bounds the scratch memory, which a processor's cache holds."""


@dataclass(frozen=True)
class Edge(CachePolicy):
    """Remembered maximum of attention x novelty of the key."""

    buffers: ClassVar[tuple[str, ...]] = ("memory", "twin")
    per_query_head: ClassVar[bool] = True

    shared_heads: bool = True
    """One choice for all heads of a layer, by their mean score; false: every KV head for itself, which text gains from."""

    recent: Share = 0.25
    """Share of the budget always kept for the newest tokens: what prose lives on. Facts of video do not need it."""

    newest: int = 16
    """Never fewer newest tokens than these."""

    sinks: int = 0
    """First tokens of the stream that are never evicted."""

    novelty: float = 1.0
    """Exponent of a picture's novelty; 0 leaves memory alone."""

    values: Share = 0.2
    """Share of the slots beside the newest that goes to the largest values."""

    decay: Share = 1.0
    """Of the memory at every compaction; 1 never forgets a look."""

    takes_focus: ClassVar[bool] = True

    observe_window: ClassVar[int] = ALL

    def minimum(self) -> int:
        return self.sinks + self.newest + 1

    def evict_at_least(self, budget: int) -> int:
        # Twice the usual: comparing keys makes a compaction twice as expensive.
        return self.slack or 2 * super().evict_at_least(budget)

    def observe(self, layer: CacheLayer, attention: Tensor) -> None:
        memory = layer.buffer("memory")
        looks = attention.reshape(*memory.shape[:2], -1, layer.length)
        memory.clamp_min_(looks.amax(2) if looks.shape[2] > 1 else looks.squeeze(2))

    def score(self, layer: CacheLayer) -> Tensor:
        memory, pictures = layer.buffer("memory").mul_(self.decay), layer.modality == Modality.VISION
        if not self.novelty or not pictures.any():
            return memory
        self._update_twins(layer)
        novelty = (1 - layer.buffer("twin").clamp(0, 1)) ** self.novelty
        return memory * novelty.where(pictures, 1)

    def choose(self, layer: CacheLayer, size: int) -> Tensor:
        largest = int(self.values * max(size - sum(self.protected(layer, size)), 0))
        best = super().choose(layer, size - largest)
        if not largest:
            return best
        norm = layer.values.float().norm(dim=-1)
        norm = norm.mean(1, keepdim=True) if self.shared_heads else norm
        norm.scatter_(-1, best, torch.inf)
        order: Tensor = norm.sort(dim=-1, descending=True, stable=True).indices
        return order[..., :size].sort(dim=-1).values

    def _update_twins(self, layer: CacheLayer) -> None:
        """The largest cosine with a later key: only keys that came since the last time are new."""
        twin, first = layer.buffer("twin"), layer.length - min(layer.counts.new_since_eviction, layer.length)
        coming = torch.nn.functional.normalize(layer.unrotated_keys(slice(first, None)).float(), dim=-1)
        size = max(PAIRS // coming.shape[2], 1)
        for start in range(0, layer.length, size):
            block = slice(start, min(start + size, layer.length))
            keys = layer.unrotated_keys(block).float()
            likeness = keys @ coming.mT
            if block.stop > first:
                both = max(first - start, 0)  # from here on, keys of the block are themselves among the coming ones
                later = torch.ones(block.stop - start - both, coming.shape[2], dtype=torch.bool, device=layer.device)
                likeness[:, :, both:].masked_fill_(~later.triu(start + both - first + 1), -torch.inf)
            best = likeness.amax(-1) / keys.norm(dim=-1).clamp_min(1e-12)
            torch.maximum(twin[..., block], best, out=twin[..., block])

    def protected(self, layer: CacheLayer, size: int) -> tuple[int, int]:
        return self.sinks, max(round(self.recent * (layer.budget or layer.length)), self.newest)
