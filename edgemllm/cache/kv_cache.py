"""The bounded KV cache of a whole model: its layers, and how they share slots and rotations."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from edgemllm.cache.chunk import Chunk
from edgemllm.cache.layer import CacheLayer
from edgemllm.cache.rope import Rope

if TYPE_CHECKING:
    from edgemllm.policies.base import CachePolicy


class KVCache(Cache):  # type: ignore[misc]
    """All layers. `budgets` holds the slots of each layer, None for a layer that may grow without end.

    `windows`: the sliding window of each layer, None for full attention. In a model that mixes both, a sliding layer
    holds its own window and room for `chunk` tokens, and no policy governs it. `sliding_rope`: its rotation, if another.
    """

    layers: list[CacheLayer]

    def __init__(
        self,
        policy: CachePolicy,
        rope: Rope,
        budgets: Sequence[int | None],
        windows: Sequence[int | None] = (),
        sliding_rope: Rope | None = None,
        chunk: int = 1,
    ) -> None:
        from edgemllm.policies.window import Window

        rope, sliding_rope = copy.copy(rope), copy.copy(sliding_rope)  # step and shared rotations belong to this stream
        windows = windows or [None] * len(budgets)
        mixed = None in windows
        layers = []
        for budget, window in zip(budgets, windows, strict=True):
            if window is not None and mixed:
                layers.append(CacheLayer(Window(), sliding_rope or rope, window - 1 + chunk, window))
            else:
                layers.append(CacheLayer(policy, rope, budget, window))
        super().__init__(layers=layers)
        self.policy, self.rope, self.chunk = policy, rope, chunk
        self.ropes = [rope] if sliding_rope is None else [rope, sliding_rope]
        self.governed = [layer for layer in layers if layer.policy is policy]
        """The layers in which the policy decides."""
        self.settled = False
        """Governed layers have their final shares."""

    @property
    def total(self) -> int | None:
        """Slots of all governed layers together, None where they may grow without end."""
        budgets = [layer.budget for layer in self.governed]
        return None if None in budgets else sum(budget for budget in budgets if budget is not None)

    def stage(self, chunk: Chunk) -> None:
        """Say what the next forward pass inserts."""
        self.rope.step = max(self.rope.step, chunk.step)
        if not self.settled and any(layer.budget and layer.length + len(chunk) > layer.budget for layer in self.governed):
            self.settle()
        self.forget_rotations()
        window, seen = self.policy.query_window, self.seen + len(chunk)
        ring = torch.arange(seen - min(window, len(chunk)), seen, device=chunk.embeds.device) % max(window, 1)
        for layer in self.layers:
            layer.incoming, layer.ring = chunk, ring

    def begin_prompt(self) -> None:
        """What comes next is the newest prompt."""
        for layer in self.layers:
            layer.prompt = self.seen

    def make_room(self, count: int) -> None:
        """In every layer, for `count` more tokens."""
        for layer in self.layers:
            layer.make_room(count)

    def forget_rotations(self) -> None:
        """What the layers of the last forward pass shared."""
        for rope in self.ropes:
            rope.forget()

    def settle(self) -> None:
        """Let the policy share the slots among the layers when they are full for the first time; once, since storage moves."""
        self.settled = True
        if self.policy.uneven:
            self.share()

    def share(self) -> None:
        """Divide the slots among governed layers as the policy wants; each always has room for its minimum and a chunk."""
        total = self.total
        if total is None:
            return
        floor = self.policy.minimum() + self.chunk
        if floor * len(self.governed) > total:
            return
        wanted = self.policy.allocate(self.governed, total, floor)
        # First those that shrink, so that the sum never exceeds the total on the way.
        for layer, budget in sorted(zip(self.governed, wanted, strict=True), key=lambda pair: pair[1] - (pair[0].budget or 0)):
            if budget != layer.budget:
                layer.resize(budget)

    @property
    def nbytes(self) -> int:
        """Bytes of every live tensor."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def seen(self) -> int:
        """Tokens ever inserted."""
        return self.layers[0].seen

    def remembered_times(self) -> Tensor:
        """The video seconds of which some layer still holds a token, sorted, without repeats; on the CPU."""
        times = [layer.time[..., : layer.length].flatten() for layer in self.layers if layer.is_initialized]
        if not times:
            return torch.empty(0)
        joined = torch.cat(times)
        found: Tensor = torch.unique(joined[~joined.isnan()])
        return found.cpu()
