"""The contract of a cache policy: which cached tokens survive when a layer is full.

A policy is a frozen dataclass without memory: what it has to remember lives in the layer, in named per-slot buffers that
travel with the keys. Override as little as possible: `score`; with `observe` for attention-based scores; `compress` to
merge; `after_prefill` for a published schedule; `allocate` for unequal layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from edgemllm.cache.score_check import checked, protected_counts
from edgemllm.cache.scores import OBSERVED_ROWS
from edgemllm.cache.scratch import Scratch
from edgemllm.cache.settings import check
from edgemllm.lazy import Tensor, torch

if TYPE_CHECKING:
    from edgemllm.cache.layer import CacheLayer

ALL = 1 << 62
"""As `observe_window`: every query."""
PROTECTED_SCORE = 2.0**60
"""Protected tokens score from here upwards."""


@dataclass(frozen=True)
class CachePolicy:
    """Decides which slots survive."""

    positions: Literal["cache", "original"] = "cache"
    """`cache`: survivors are renumbered without gaps, so a stream never leaves the trained range. `original`: as seen."""

    slack: int = 0
    """Slots freed at once, so that compactions are rare: 1 as published; 0: budget / 64, at most 32 (edge: twice that)."""

    shared_heads: bool = False
    """One choice for all heads of a layer, by their mean score; false: every KV head chooses for itself."""

    bounded: ClassVar[bool] = True
    """False: the cache grows with the stream and never evicts."""

    one_shot: ClassVar[bool] = False
    """Published for one prompt: a run that had to evict before the prompt's end is marked `streamed`."""

    buffers: ClassVar[tuple[str, ...]] = ()
    """Names of the float32 numbers that a layer keeps with every slot, `layer.buffer(name)` (B, H_kv, L)."""

    layer_stats: ClassVar[tuple[str, ...]] = ()
    """Names of the float32 numbers that a layer keeps for the policy, `layer.stats[name]`."""

    observe_window: ClassVar[int] = 0
    """Trailing queries of each chunk whose attention `observe` receives; 0: none, ALL: every one."""

    compaction_copies: ClassVar[int] = 2
    """float32 copies of a layer's keys, in bytes, that a compaction makes at most; the plan leaves room for them."""

    per_query_head: ClassVar[bool] = False
    """`observe` receives every query head, (B, H, w, L), instead of the mean of those that share a KV head."""

    takes_focus: ClassVar[bool] = False
    """Leaves room for what `layer.focus` finds, where it is known what will be asked (cache/focus.py)."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def query_window(self) -> int:
        """Return how many latest queries a layer keeps for `layer.window_attention()` at eviction time; 0: none."""
        return 0

    @property
    def scratch(self) -> Scratch:
        """Return what the plan leaves room for besides the cache."""
        return Scratch(min(self.observe_window, OBSERVED_ROWS), self.query_window, self.compaction_copies)

    @property
    def uneven(self) -> bool:
        """Return whether layers get different numbers of slots when the cache first fills: `allocate` is overridden."""
        return type(self).allocate is not CachePolicy.allocate

    def minimum(self) -> int:
        """Return the smallest budget, in tokens, with which the policy makes sense (the incoming chunk comes on top)."""
        return 1

    def evict_at_least(self, budget: int) -> int:
        """Return how many slots are freed at least when a layer of `budget` slots is full."""
        return self.slack or min(max(budget // 64, 1), 32)

    def allocate(self, layers: Sequence[CacheLayer], total: int, floor: int) -> list[int]:
        """Return the slots of each managed layer, at least `floor` each, summing to at most `total`.

        Asked for once, when the cache first fills; until then all layers have the same.
        """
        return [total // len(layers)] * len(layers)

    def observe(self, layer: CacheLayer, attention: Tensor) -> None:
        """See attention weights (B, H_kv, w, L), float32, mean over the query heads that share a KV head.

        The queries are those of the slots `layer.observed`; of the last slots, a later call brings more rows. Not to be
        written to: the output may be made of the same weights.
        """

    def score(self, layer: CacheLayer) -> Tensor:
        """Return the worth of every live slot, (B, H_kv | 1, L), any real type, compared as float32; higher survives.

        1 in place of H_kv: one choice for all heads. The tensor is copied before anything is written to it.
        """
        raise NotImplementedError("a policy overrides score() or compress()")

    def protected(self, layer: CacheLayer, size: int) -> tuple[int, int]:
        """Return how many of the first and of the newest tokens survive whatever their score, when `size` are kept."""
        return 0, 0

    def choose(self, layer: CacheLayer, size: int) -> Tensor:
        """Return the `size` slots that survive, ascending, (B, H_kv | 1, size)."""
        score = checked(self, layer, self.score(layer))
        if self.shared_heads:
            score = score.mean(1, keepdim=True)
        first, newest = protected_counts(self, layer, self.protected(layer, size))
        if layer.focus is not None:
            layer.focus.lift(score, layer, size, first, newest)
        if newest:
            # The newest highest: a budget too small for all of them still keeps the end.
            score[..., layer.length - newest :] = PROTECTED_SCORE * torch.arange(2, newest + 2, device=layer.device)
        if first:
            # Slots stay in temporal order and protected ones are never evicted, so these are always the stream's first.
            score[..., :first] = torch.inf
        # Stable: of equal scores the older survives, on every device.
        return score.sort(dim=-1, descending=True, stable=True).indices[..., :size].sort(dim=-1).values

    def compress(self, layer: CacheLayer, size: int) -> None:
        """Reduce the layer to `size` slots."""
        layer.keep(self.choose(layer, size))

    def after_prefill(self, layers: Sequence[CacheLayer]) -> None:
        """Act once a prompt is in the managed layers, before the answer."""


@dataclass(frozen=True)
class Newest(CachePolicy):
    """Keeps the newest tokens: what a sliding layer does."""

    def score(self, layer: CacheLayer) -> Tensor:
        return torch.arange(layer.length, device=layer.device).view(1, 1, -1)
