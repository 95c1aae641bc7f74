"""A layer whose policy decides what stays: room is made before tokens come in, so that the budget always holds."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from edgemllm.cache.bits import UNQUANTISED, KVBits
from edgemllm.cache.layer import CacheLayer
from edgemllm.cache.policy import CachePolicy
from edgemllm.cache.rope import Rope
from edgemllm.cache.scores import group_mean
from edgemllm.errors import OutOfMemoryError, UsageError


class ManagedLayer(CacheLayer):
    """A layer under a policy, which is asked when the budget is full and when the budget shrinks."""

    def __init__(
        self, policy: CachePolicy, rope: Rope, budget: int | None, window: int | None = None, bits: KVBits = UNQUANTISED
    ) -> None:
        super().__init__(rope, policy.positions, policy.buffers, policy.layer_stats, policy.query_window, budget, window, bits)
        self.policy = policy

    def show(self, weights: Tensor) -> None:
        """Let the policy see weights (B, H, rows, l) on the first l slots, the last of which are the rows' own."""
        assert self.now is not None
        visible, length = weights.shape[3], self.length
        self.now.observed = slice(visible - weights.shape[2], visible)
        seen = weights if self.policy.per_query_head else group_mean(weights, self.kv_heads)
        self.policy.observe(self, F.pad(seen, (0, length - visible)) if visible < length else seen)

    def make_room(self, count: int) -> None:
        """See to it that `count` more tokens fit: grow, or let the policy choose what goes."""
        if self.budget is not None and self.length + count > self.budget:
            self._evict(self.budget, count)
        super().make_room(count)

    def resize(self, budget: int) -> None:
        """Set another budget; the policy chooses what stays of too much."""
        self.budget = budget
        if self.is_initialized:
            if self.length > budget:
                self._compress(budget, budget)
            self.slots.resize(budget)

    def _evict(self, budget: int, count: int) -> None:
        if not self.policy.bounded:
            raise OutOfMemoryError(
                f"policy full holds {self.length} tokens per layer and never evicts, {count} more exceed "
                f"the KV budget of {budget}",
                "choose a bounded policy (--policy inf-mllm) or a larger --kv-budget",
            )
        size = budget - max(count, self.policy.evict_at_least(budget))
        # A chunk that fits beside the policy's minimum is the session's promise; slack gives way to it.
        size = min(max(size, min(self.policy.minimum(), budget - count)), self.length)
        self.counts.streamed = self.counts.streamed or self.policy.one_shot
        self._compress(size, budget - count)

    def _compress(self, size: int, most: int) -> None:
        """Let the policy reduce the layer to `size`. Raises UsageError where more than `most` tokens stay."""
        self.policy.compress(self, size)
        if self.length > most:
            name = type(self.policy).__name__
            raise UsageError(f"policy {name}: compress() kept {self.length} tokens of a layer, expected {size}")
