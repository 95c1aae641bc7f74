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

    def token_bytes(self, policy: CachePolicy) -> int:
        """Bytes of one cached token over all layers: keys, values, positions, modality, time and the policy's buffers."""
        slot = 2 * self.head_dim * self.itemsize + 4 * self.axes + 1 + 4 + 4 * len(policy.slots)
        return self.layers * self.kv_heads * slot

    def fixed_bytes(self, policy: CachePolicy) -> int:
        """Bytes that do not depend on the number of tokens: a policy's queries and scalars."""
        queries = self.heads * policy.query_window * self.head_dim * self.itemsize
        return self.layers * (queries + 4 * len(policy.scalars))
