"""What the cache costs, in bytes, before a single token is in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgemllm.policies.base import CachePolicy


@dataclass(frozen=True)
class CacheSpec:
    """The shape of a model's KV cache."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    itemsize: int
    """Bytes of one number of a key or value."""
    axes: int = 1
    """Position axes: 1 for RoPE, 3 for M-RoPE."""
    windows: tuple[int | None, ...] = ()
    """The sliding window of each layer, None for full attention; empty: no layer slides."""

    @property
    def sliding(self) -> tuple[int, ...]:
        """Windows of the layers that no policy governs: sliding ones beside full ones."""
        return tuple(window for window in self.windows if window is not None) if None in self.windows else ()

    def token_bytes(self, policy: CachePolicy) -> int:
        """Bytes of one cached token over all governed layers: keys, values, positions, modality, time, policy's buffers."""
        return self.governed * self.kv_heads * (self._slot_bytes(policy.positions) + 4 * len(policy.slots))

    def fixed_bytes(self, policy: CachePolicy, chunk: int = 1) -> int:
        """Bytes that do not depend on the budget: a policy's queries and scalars, and sliding layers fed `chunk` tokens."""
        slots = sum(window - 1 + chunk for window in self.sliding)
        queries = self.heads * policy.query_window * self.head_dim * self.itemsize
        return self.governed * (queries + 4 * len(policy.scalars)) + slots * self.kv_heads * self._slot_bytes("cache")

    @property
    def governed(self) -> int:
        """How many layers the policy decides for."""
        return self.layers - len(self.sliding)

    def _slot_bytes(self, positions: str) -> int:
        # With several axes the renumbered places are kept, with one they are the slots' own numbers.
        places = self.axes if positions == "cache" and self.axes > 1 else 0
        return 2 * self.head_dim * self.itemsize + 4 * (self.axes + places) + 1 + 4
