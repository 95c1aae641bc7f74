"""The bounded KV cache of a whole model: its layers, and how they share slots and rotations."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from edgemllm.cache.bits import UNQUANTISED, KVBits
from edgemllm.cache.chunk import Chunk, Modality
from edgemllm.cache.constant_layers import SharedLayer, StateLayer
from edgemllm.cache.forward_pass import Pass
from edgemllm.cache.managed_layer import ManagedLayer
from edgemllm.cache.policy import CachePolicy, Newest
from edgemllm.cache.rope import NoRope, Rope
from edgemllm.cache.size import LayerSpec, managed_kind


class KVCache(Cache):  # type: ignore[misc]
    """All layers. `budgets` holds the slots of each layer, None for a layer that may grow without end.

    `shapes`: what each layer is; empty: full attention everywhere. In a model of mixed kinds the policy manages the layers
    of full attention alone: a sliding one holds its window and room for `chunk` tokens, a constant state is transformers'
    own, a shared layer has no slots. `sliding_rope`: the rotation of sliding layers, if another.
    """

    layers: list[ManagedLayer | StateLayer | SharedLayer]

    def __init__(
        self,
        policy: CachePolicy,
        rope: Rope,
        budgets: Sequence[int | None],
        shapes: Sequence[LayerSpec] = (),
        sliding_rope: Rope | None = None,
        chunk: int = 1,
        bits: KVBits = UNQUANTISED,
    ) -> None:
        rope, sliding_rope = copy.copy(rope), copy.copy(sliding_rope)  # their stride belongs to this stream
        shapes = shapes or [LayerSpec()] * len(budgets)
        kind = managed_kind(shapes)
        layers: list[ManagedLayer | StateLayer | SharedLayer] = []
        for budget, shape in zip(budgets, shapes, strict=True):
            if shape.kind == "state":
                layers.append(StateLayer())
            elif shape.source is not None:
                layers.append(SharedLayer(cast(ManagedLayer, layers[shape.source])))
            elif shape.kind == kind:
                layers.append(ManagedLayer(policy, rope if shape.rotary else NoRope(rope.axes), budget, shape.window, bits))
            else:
                assert shape.window is not None
                layers.append(ManagedLayer(Newest(), sliding_rope or rope, shape.window - 1 + chunk, shape.window, bits))
        super().__init__(layers=layers)
        self.policy, self.rope, self.chunk, self.bits = policy, rope, chunk, bits
        self.with_slots = [layer for layer in layers if isinstance(layer, ManagedLayer)]
        """The layers that hold keys and values of their own."""
        self.managed = [layer for layer in self.with_slots if layer.policy is policy]
        """The layers in which the policy decides."""
        self.budgets_final = False
        """Managed layers have their final budgets."""
        self.now: Pass

    @property
    def total(self) -> int | None:
        """Return the slots of all managed layers together, None where they may grow without end."""
        budgets = [layer.budget for layer in self.managed]
        return None if None in budgets else sum(budget for budget in budgets if budget is not None)

    def begin(self, chunk: Chunk) -> None:
        """Begin the forward pass that inserts `chunk`."""
        self.rope.stride = max(self.rope.stride, chunk.stride)
        full = any(layer.budget and layer.length + len(chunk) > layer.budget for layer in self.managed)
        if full and not self.budgets_final:
            self.finalize_budgets()
        window, seen = self.policy.query_window, self.seen + len(chunk)
        ring = torch.arange(seen - min(window, len(chunk)), seen, device=chunk.embeds.device) % max(window, 1)
        self.now = Pass(chunk, ring, [weakref.ref(layer) for layer in self.managed])
        for layer in self.with_slots:
            layer.now = self.now

    def begin_prompt(self) -> None:
        """Mark what comes next as the newest prompt."""
        for layer in self.with_slots:
            layer.counts.prompt = self.seen

    def make_room(self, count: int) -> None:
        """Make room for `count` more tokens in every layer."""
        for layer in self.with_slots:
            layer.make_room(count)

    def finalize_budgets(self) -> None:
        """Let the policy divide the slots when layers are full for the first time; once, since storage moves."""
        self.budgets_final = True
        if self.policy.uneven:
            self.allocate_budgets()

    def allocate_budgets(self) -> None:
        """Divide the slots among managed layers as the policy wants; each always has room for its minimum and a chunk."""
        total = self.total
        if total is None:
            return
        floor = self.policy.minimum() + self.chunk
        if floor * len(self.managed) > total:
            return
        wanted = self.policy.allocate(self.managed, total, floor)
        # First those that shrink, so that the sum never exceeds the total on the way.
        for layer, budget in sorted(zip(self.managed, wanted, strict=True), key=lambda pair: pair[1] - (pair[0].budget or 0)):
            if budget != layer.budget:
                layer.resize(budget)

    @property
    def nbytes(self) -> int:
        """Return the bytes of every live tensor."""
        focus = self.managed[0].focus  # shared by all
        return sum(layer.nbytes for layer in self.layers) + (focus.nbytes if focus else 0)

    @property
    def state_bytes(self) -> int:
        """Return the bytes of constant states, which no budget bounds and no policy shrinks."""
        return sum(layer.nbytes for layer in self.layers if isinstance(layer, StateLayer))

    @property
    def read_bytes(self) -> int:
        """Return the bytes that a decoded token reads: keys and values, those of a shared layer again, and states."""
        read = [layer.source if isinstance(layer, SharedLayer) else layer for layer in self.layers]
        slots = [layer for layer in read if isinstance(layer, ManagedLayer) and layer.is_initialized]
        return sum(layer.store.live_bytes for layer in slots) + self.state_bytes

    @property
    def seen(self) -> int:
        """Return the tokens ever inserted."""
        return self.managed[0].counts.seen

    def remembered(self, kind: Modality) -> Tensor:
        """Return seconds of video, or lines of text, of which some layer still holds a token: sorted, once each, on the CPU."""
        times = [layer.time[layer.modality == kind] for layer in self.with_slots if layer.is_initialized]
        if not times:
            return torch.empty(0)
        seconds = torch.cat(times)
        found: Tensor = torch.unique(seconds[~seconds.isnan()])
        return found.cpu()
