"""The contract of a cache policy: which cached tokens survive when a layer is full.

A policy is a frozen dataclass without memory: what it has to remember lives in the layer, in named per-slot buffers that
travel with the keys. Override as little as possible: `score`; with `observe` for attention-based scores; `compress` to
merge; `after_prefill` for a published schedule; `allocate` for unequal layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

if TYPE_CHECKING:
    from edgemllm.cache.layer import CacheLayer, KVCache

ALL = 1 << 62
"""As `observe_window`: every query."""


@dataclass(frozen=True)
class CachePolicy:
    """Decides which slots survive."""

    positions: Literal["cache", "original"] = "cache"
    """`cache`: survivors are renumbered without gaps, so a stream never leaves the trained range. `original`: as seen."""

    slack: int = 1
    """Slots freed at least, beyond the tokens coming in: a larger value compacts more rarely while decoding."""

    bounded: ClassVar[bool] = True
    """False: the cache grows with the stream and never evicts."""

    slots: ClassVar[tuple[str, ...]] = ()
    """Names of the float32 per-slot buffers (B, H_kv, N) the policy needs."""

    @property
    def observe_window(self) -> int:
        """Trailing queries of each chunk whose attention `observe` receives; 0: none, ALL: every one."""
        return 0

    @property
    def query_window(self) -> int:
        """Latest queries a layer keeps, so that `layer.window_attention()` can be computed at eviction time; 0: none."""
        return 0

    def minimum(self) -> int:
        """The smallest budget, in tokens, with which the policy means anything (the incoming chunk comes on top)."""
        return 1

    def allocate(self, cache: KVCache, total: int) -> list[int]:
        """Slots of each governed layer, summing to at most `total`."""
        return [total // len(cache.governed)] * len(cache.governed)

    def observe(self, layer: CacheLayer, attention: Tensor) -> None:
        """See attention weights (B, H_kv, w, L), float32, mean over the query heads that share a KV head."""

    def score(self, layer: CacheLayer) -> Tensor:
        """The worth of every live slot, (B, H_kv | 1, L); 1 = one choice for all heads. Higher survives."""
        raise NotImplementedError

    def compress(self, layer: CacheLayer, size: int) -> None:
        """Reduce the layer to `size` slots."""
        layer.keep(self.score(layer).topk(size, dim=-1).indices)

    def after_prefill(self, cache: KVCache) -> None:
        """Called once a prompt is in the cache, before the answer."""
