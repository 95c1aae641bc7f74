"""Memory as a sum: every cache that is open has its place in the plan before it is made."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from edgemllm.commands.serve.refusal import Refusal
from edgemllm.device.memory import human_bytes
from edgemllm.planning.plan import Plan


@dataclass(frozen=True)
class Share:
    """What one cache takes for as long as it is open, and what computing with it takes for a moment."""

    kv_bytes: int
    activation_bytes: int

    @classmethod
    def of(cls, plan: Plan) -> Share:
        """Return the share of what was planned."""
        return cls(plan.kv_bytes, plan.activation_bytes)


class MemoryPlan:
    """The caches that fit beside weights, vision and margin. One session computes at a time: the largest scratch counts."""

    def __init__(self, plan: Plan) -> None:
        self.room = plan.free_bytes - plan.weights_bytes - plan.vision_bytes - plan.margin_bytes
        """Bytes for caches and scratch."""
        self._shares: dict[str, Share] = {}
        self._lock = threading.Lock()

    @property
    def kv_bytes(self) -> int:
        """Return the bytes of all caches that have a place."""
        return sum(share.kv_bytes for share in self._shares.values())

    def reserve(self, name: str, share: Share) -> None:
        """Give a cache its place. Raises Refusal (409) with the arithmetic where there is none."""
        with self._lock:
            shares = {**self._shares, name: share}
            scratch = max(each.activation_bytes for each in shares.values())
            needed = sum(each.kv_bytes for each in shares.values()) + scratch
            if needed > self.room:
                raise self._refusal(share, scratch, needed)
            self._shares = shares

    def release(self, name: str) -> None:
        """Take a place back; none is no error."""
        with self._lock:
            self._shares = {other: share for other, share in self._shares.items() if other != name}

    def _refusal(self, share: Share, scratch: int, needed: int) -> Refusal:
        return Refusal(
            409,
            f"this cache does not fit: {len(self._shares)} open take {human_bytes(self.kv_bytes)}, this one "
            f"{human_bytes(share.kv_bytes)}, computing {human_bytes(scratch)}; together {human_bytes(needed)} of "
            f"{human_bytes(self.room)} that weights, vision and margin leave",
            "a smaller kv_budget, or delete a session",
            code="memory_budget_exceeded",
        )
