"""edge: keep passages once attended to sharply, and pictures not repeated later. Our own; see docs/design.md, docs/log.md.

A cached token j is worth in a layer

    S_j = M_j (1 - max(0, max_{i > j} cos(k_i, k_j)))        over keys i that were ever cached beside j

M_j, its *memory*, is the largest attention that any query ever paid to it, over all query heads that share its KV head: the
maximum, because a fact is looked at once and sharply, and remembered, because the look passes. The second factor is its
*novelty*: a picture's key with a near twin among later ones is redundant, the later one stays. Text has no such factor, as
its keys resemble each other whatever they say.

What stays is chosen by the mean over all layers of a token's rank in each, as the looks of one layer say little, so that
every layer keeps the same tokens. A word is worth as much as the best one near it, since half a fact is of no use. Words and
pictures are ranked among their kind, and both lose the same share: what is said about a video does not push it out. The
newest tokens always stay: a quarter of the budget, and two thirds of it in a text so long that most of its facts cannot
stay in any case. Positions are renumbered. No probe prompt is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from edgemllm.cache.chunk import Modality
from edgemllm.errors import UsageError
from edgemllm.lazy import Tensor, torch
from edgemllm.policies.base import ALL, CachePolicy, Range, Share

if TYPE_CHECKING:
    from edgemllm.cache.layer import CacheLayer

PAIRS = 1 << 16
"""Keys compared at once, times the keys they are compared with: bounds the scratch memory, which a processor's cache holds."""


@dataclass(frozen=True)
class Edge(CachePolicy):
    """Remembered maximum of attention x novelty of the key, ranked over all layers, in passages."""

    buffers: ClassVar[tuple[str, ...]] = ("memory", "twin")
    per_query_head: ClassVar[bool] = True

    shared_layers: bool = True
    """One choice for all layers, by the mean of a token's ranks; false: every layer for itself."""

    shared_heads: bool = True
    """One choice for all heads of a layer, by their mean score; false, with shared_layers=false: every KV head for itself."""

    span: Annotated[int, Range(1, odd=True)] = 13
    """Width of the neighbourhood, odd, in which a word is worth as much as the best word. Pictures stand for themselves."""

    recent: Share = 0.25
    """Share of the budget always kept for the newest tokens: what prose lives on. Facts of video do not need it."""

    horizon: float = 8.0
    """A text of more than this many budgets is long (0: none is). A stream with pictures or with a focus never is."""

    recent_in_long: Share = 0.67
    """`recent` of a long text."""

    newest: int = 16
    """Never fewer newest tokens than these."""

    sinks: int = 4
    """First tokens of the stream that are never evicted."""

    novelty: float = 1.0
    """Exponent of a picture's novelty; 0 leaves memory alone."""

    decay: Share = 1.0
    """Of the memory at every compaction; 1 never forgets a look."""

    takes_focus: ClassVar[bool] = True

    observe_window: ClassVar[int] = ALL

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shared_layers and not self.shared_heads:
            raise UsageError(
                "policy edge: shared_heads=false, but shared_layers=true makes one choice for all",
                "--set shared_heads=false --set shared_layers=false",
            )

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
        if not self.shared_layers:
            return self._compared(self._worth(layer), layer)
        assert layer.now is not None
        key = ("edge", layer.counts.seen, layer.length, layer.budget)
        return layer.now.shared(key, lambda: self._in_all(layer))

    def _in_all(self, layer: CacheLayer) -> Tensor:
        """Return the score (B, 1, L) of the tokens that all layers of one budget hold, when the first of them makes room."""
        ranks = torch.zeros(layer.positions.shape[1], 1, layer.length, device=layer.device)
        for peer in (each for each in layer.peers if each.budget == layer.budget):
            ranks += _ranks(self._worth(peer).mean(1, keepdim=True))
        return self._compared(ranks, layer)

    def _compared(self, worth: Tensor, layer: CacheLayer) -> Tensor:
        """Return what tokens are chosen by, (B, H_kv | 1, L): a word's `worth` is that of the best word near it.

        Where there are words and pictures, it is the share of its kind that a token leaves behind. A look at a word and one
        at a picture do not compare: questions and answers, which have no novelty to lose by, would push out every picture.
        """
        words = layer.modality[:, : worth.shape[1]] != Modality.VISION
        near = torch.nn.functional.max_pool1d(worth.where(words, -torch.inf), self.span, 1, self.span // 2)
        worth = near.where(words, worth)
        if words.all() or not words.any():
            return worth
        return _shares(worth, words).where(words, _shares(worth, ~words))

    def _worth(self, layer: CacheLayer) -> Tensor:
        """Return S (B, H_kv, L), of this layer alone."""
        memory, pictures = layer.buffer("memory").mul_(self.decay), layer.modality == Modality.VISION
        if not self.novelty or not pictures.any():
            return memory
        self._update_twins(layer)
        novelty = (1 - layer.buffer("twin").clamp(0, 1)) ** self.novelty
        return memory * novelty.where(pictures, 1)

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
        budget = layer.budget or layer.length
        share = max(self.recent, self.recent_in_long) if self._long(layer, budget) else self.recent
        return self.sinks, max(round(share * budget), self.newest)

    def _long(self, layer: CacheLayer, budget: int) -> bool:
        """Return whether most of what a text said is lost in any case, so that more of the newest is worth more."""
        beyond = 0 < self.horizon * budget < layer.counts.seen
        return beyond and layer.focus is None and not bool((layer.modality == Modality.VISION).any())


def _ranks(worth: Tensor) -> Tensor:
    """Return how many tokens each one is worth more than, in the last dimension; of equals, the later is worth more."""
    return worth.argsort(dim=-1, stable=True).argsort()


def _shares(worth: Tensor, kind: Tensor) -> Tensor:
    """Return for tokens of a `kind` (bool, as `worth`) which share of it each one leaves behind, itself included."""
    others = (~kind).sum(-1, keepdim=True)
    return (_ranks(worth.where(kind, -torch.inf)) + 1 - others) / kind.sum(-1, keepdim=True)
