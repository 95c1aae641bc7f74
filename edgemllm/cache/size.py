"""What the cache costs in bytes before a single token is in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgemllm.cache.columns import ITEM_BYTES, columns

if TYPE_CHECKING:
    from edgemllm.cache.policy import CachePolicy


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
    focus: int = 0
    """Queries of what will be asked that are kept in all layers together (focus.py)."""

    @property
    def sliding(self) -> tuple[int, ...]:
        """Return the windows of the layers that no policy manages: sliding ones beside full ones."""
        return tuple(window for window in self.windows if window is not None) if None in self.windows else ()

    @property
    def managed(self) -> int:
        """Return how many layers the policy decides for."""
        return self.layers - len(self.sliding)

    def token_bytes(self, policy: CachePolicy) -> int:
        """Return the bytes of one cached token over all managed layers."""
        return self.managed * self.kv_heads * self._slot_bytes(policy.positions, policy.buffers)

    def fixed_bytes(self, policy: CachePolicy, chunk: int = 1) -> int:
        """Return the bytes that do not depend on the budget.

        These are a policy's queries and layer statistics, and sliding layers that are fed `chunk` tokens.
        """
        slots = sum(window - 1 + chunk for window in self.sliding)
        query = self.heads * self.head_dim * self.itemsize
        queries = query * policy.query_window
        slots_bytes = slots * self.kv_heads * self._slot_bytes("cache")
        return query * self.focus + slots_bytes + self.managed * (queries + 4 * len(policy.layer_stats))

    def _slot_bytes(self, positions: str, buffers: Sequence[str] = ()) -> int:
        table = columns(self.head_dim, self.head_dim, self.axes, positions, buffers)
        return sum(math.prod(column.shape) * ITEM_BYTES.get(column.dtype, self.itemsize) for column in table)
