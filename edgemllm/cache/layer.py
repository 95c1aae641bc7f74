"""The bounded KV cache: slots allocated once per layer, room made before tokens come in."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from edgemllm.cache.chunk import Chunk
from edgemllm.cache.positions import Rope, Rotation, close_gaps, rotate
from edgemllm.errors import OutOfMemoryError

if TYPE_CHECKING:
    from edgemllm.policies.base import CachePolicy

GROWTH = 1024
"""An unbounded layer grows by at least this many slots, and by half of what it holds."""


class CacheLayer(CacheLayerMixin):  # type: ignore[misc]
    """One decoder layer's slots.

    keys, values  (B, H_kv, N, D), keys unrotated
    positions     (A, B, H_kv, N) int32, as in the stream
    modality      (B, H_kv, N) uint8 · time (B, H_kv, N) float32, seconds of video or NaN
    queries       (B, H, w, D), the latest queries, unrotated, only where the policy asks for them
    """

    def __init__(self, policy: CachePolicy, rope: Rope, budget: int | None, window: int | None = None) -> None:
        super().__init__()
        self.policy, self.rope, self.budget, self.window = policy, rope, budget, window
        self.length = self.seen = self.since = self.evicted = self.compactions = 0
        self.streamed = False
        """A policy published for one prompt had to evict before that prompt's end."""
        self.rows = slice(0)
        """The slots whose queries `observe` sees."""
        self.slots: dict[str, Tensor] = {}
        self.stats: dict[str, Tensor] = {}
        self.queries: Tensor | None = None
        self.scaling = 1.0
        self.incoming: Chunk

    # ---- what transformers calls -------------------------------------------------------------------------------

    def lazy_initialization(self, keys: Tensor, values: Tensor) -> None:
        """Allocate every slot; from here on a bounded layer's memory changes only where its policy shares anew."""
        batch, heads, count, _ = keys.shape
        self.dtype, self.device = keys.dtype, keys.device
        room = self.budget if self.budget is not None else max(GROWTH, count)
        self.keys = keys.new_zeros(batch, heads, room, keys.shape[-1])
        self.values = values.new_zeros(batch, heads, room, values.shape[-1])
        self.positions = torch.zeros(self.rope.axes, batch, heads, room, dtype=torch.int32, device=keys.device)
        self.modality = torch.zeros(batch, heads, room, dtype=torch.uint8, device=keys.device)
        self.time = torch.full((batch, heads, room), torch.nan, device=keys.device)
        self.slots = {name: torch.zeros(batch, heads, room, device=keys.device) for name in self.policy.slots}
        self.stats = {name: torch.zeros((), device=keys.device) for name in self.policy.scalars}
        self.is_initialized = True

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Make room, append keys and values (B, H_kv, q, D), and return the live ones (B, H_kv, L, D)."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        count = keys.shape[2]
        self._make_room(count)
        new = slice(self.length, self.length + count)
        self.keys[:, :, new], self.values[:, :, new] = keys, values
        self.positions[..., new] = self.incoming.positions[:, :, None].to(torch.int32)
        self.modality[..., new] = self.incoming.modality[:, None]
        self.time[..., new] = self.incoming.time[:, None]
        for buffer in self.slots.values():
            buffer[..., new] = 0
        self.length += count
        self.seen += count
        self.since += count
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        """Tokens ever seen: what transformers takes for the length of the sequence."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Unused (our attention makes its own mask), but true: keys after the update, and where they start."""
        return self.length + query_length, self.seen - self.length

    def get_max_length(self) -> int:
        """-1: no limit to the stream."""
        return -1

    def reset(self) -> None:
        """Forget everything, keep the memory."""
        self.length = self.seen = self.since = self.evicted = self.compactions = 0
        self.streamed = False
        for number in self.stats.values():
            number.zero_()

    # ---- what policies use -------------------------------------------------------------------------------------

    def slot(self, name: str) -> Tensor:
        """The live part of a per-slot buffer, (B, H_kv, L), a view; new tokens start at zero."""
        return self.slots[name][..., : self.length]

    def keep(self, index: Tensor) -> None:
        """Keep the slots at `index` (B, H_kv | 1, n) in their temporal order, forget the rest."""
        heads = self.keys.shape[1]
        index = index.sort(dim=-1).values.expand(-1, heads, -1)
        size = index.shape[-1]
        for buffer in self._buffers():
            live = buffer[..., : self.length, :]
            # The gather makes a copy first, so reading and writing may overlap.
            live[..., :size, :] = live.gather(-2, index[..., None].expand(*live.shape[:-4], -1, -1, -1, live.shape[-1]))
        self.evicted += self.length - size
        self.compactions += 1
        self.since = 0
        self.length = size

    def rotation(self) -> Rotation:
        """The rotation of every live slot."""
        return self.rope.at(self.rotary_positions(), self.keys)

    def rotary_positions(self) -> Tensor:
        """The position of every live slot under the policy's numbering, (A, B, H_kv | 1, L)."""
        if self.policy.positions == "original":
            return self.positions[..., : self.length]
        if self.rope.axes == 1:
            return torch.arange(self.length, device=self.device).view(1, 1, 1, -1)
        return close_gaps(self.positions[..., : self.length], self.rope.step)

    def inside_window(self, count: int) -> Tensor:
        """(B, H_kv | 1, count, L) bool: the live slots inside the sliding window of each of the last `count` tokens.

        Distances are those of the policy's numbering, so that under `cache` what survived stays in sight.
        """
        assert self.window is not None
        places = self.rotary_positions()[0]
        return places[..., -count:, None] - places[..., None, :] < self.window

    def window_attention(self) -> Tensor:
        """Attention of the latest queries to the live slots, (B, H_kv, w, L) float32, mean over the query group.

        The window's own tokens must still be the last live slots: a policy never evicts them.
        """
        assert self.queries is not None
        window = min(self.queries.shape[2], self.seen)
        latest = torch.arange(self.seen - window, self.seen, device=self.device) % self.queries.shape[2]
        cos, sin = self.rotation()
        keys = rotate(self.keys[:, :, : self.length], (cos, sin))
        return attention_weights(
            rotate_queries(self.queries[:, :, latest], (cos, sin)), keys, scaling=self.scaling, window=window
        )

    def remember_queries(self, queries: Tensor, scaling: float) -> None:
        """Keep the latest unrotated queries of (B, H, q, D) in a ring; token i lies at i modulo w."""
        window = self.policy.query_window
        if self.queries is None:
            self.queries = queries.new_zeros(*queries.shape[:2], window, queries.shape[-1])
        self.scaling = scaling
        count = min(window, queries.shape[2])
        place = torch.arange(self.seen - count, self.seen, device=queries.device) % window
        self.queries[:, :, place] = queries[:, :, -count:]

    # ---- memory ------------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of every live tensor of this layer."""
        if not self.is_initialized:
            return 0
        tensors = [*self._buffers(), *self.stats.values(), *([] if self.queries is None else [self.queries])]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _buffers(self) -> list[Tensor]:
        """Everything that belongs to a slot, each viewed as (..., B, H_kv, N, channels)."""
        scalars = (self.positions, self.modality, self.time, *self.slots.values())
        return [self.keys, self.values, *(buffer[..., None] for buffer in scalars)]

    def _make_room(self, count: int) -> None:
        if self.budget is not None and self.length + count > self.budget:
            self._evict(self.budget, count)
        have, wanted = self.keys.shape[2], self.length + count
        if wanted > have:
            more = max(GROWTH, have // 2, wanted - have)
            self._reallocate(have + more if self.budget is None else min(have + more, self.budget))

    def _evict(self, budget: int, count: int) -> None:
        if not self.policy.bounded:
            raise OutOfMemoryError(
                f"policy full holds {self.length} tokens a layer and never evicts, {count} more exceed "
                f"the KV budget of {budget}",
                "choose a bounded policy (--policy inf-mllm) or a larger --kv-budget",
            )
        size = budget - max(count, self.policy.slack)
        # A chunk that fits beside the policy's minimum is the session's promise; slack gives way to it.
        size = min(max(size, min(self.policy.minimum(), budget - count)), self.length)
        self.streamed = self.streamed or self.policy.one_shot
        self.policy.compress(self, size)
        assert self.length + count <= budget, "the policy kept more than it was told to"

    def trim(self) -> None:
        """Give back the memory beyond the live slots; the layer grows again as it needs, up to its budget."""
        if self.is_initialized and self.keys.shape[2] > self.length:
            self._reallocate(self.length)

    def resize(self, budget: int) -> None:
        """Another budget from now on; the policy chooses what stays of too much."""
        self.budget = budget
        if self.is_initialized:
            if self.length > budget:
                self.policy.compress(self, budget)
            self._reallocate(budget)

    def _reallocate(self, room: int) -> None:
        """Move the live slots to storage of `room` slots."""

        def moved(buffer: Tensor, dim: int) -> Tensor:
            live = buffer.narrow(dim, 0, self.length)
            return torch.cat((live, live.new_zeros([*live.shape[:dim], room - self.length, *live.shape[dim + 1 :]])), dim)

        self.keys, self.values, self.positions = moved(self.keys, 2), moved(self.values, 2), moved(self.positions, 3)
        self.modality, self.time = moved(self.modality, 2), moved(self.time, 2)
        self.slots = {name: moved(buffer, 2) for name, buffer in self.slots.items()}


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

        rope = copy.copy(rope)  # its step belongs to this stream
        windows = windows or [None] * len(budgets)
        mixed = None in windows
        layers = []
        for budget, window in zip(budgets, windows, strict=True):
            if window is not None and mixed:
                newest = Window(slack=chunk)
                layers.append(CacheLayer(newest, sliding_rope or rope, window - 1 + chunk, window))
            else:
                layers.append(CacheLayer(policy, rope, budget, window))
        super().__init__(layers=layers)
        self.policy, self.rope, self.chunk = policy, rope, chunk
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
        for layer in self.layers:
            layer.incoming = chunk

    def settle(self) -> None:
        """Let the policy share the slots among the layers by what it has seen; once, since storage moves."""
        self.settled = True
        if self.policy.scalars:
            self.share()

    def share(self) -> None:
        """Divide the slots among governed layers as the policy wants; each always has room for its minimum and a chunk."""
        total = self.total
        if total is None:
            return
        floor = self.policy.minimum() + max(self.chunk, self.policy.slack)
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


def rotate_queries(queries: Tensor, rotation: Rotation) -> Tensor:
    """Turn the queries (B, H, q, D) of the last q slots by those slots' own rotation."""
    heads, count = queries.shape[1:3]
    cos, sin = (part[:, :, -count:] for part in rotation)
    if 1 < cos.shape[1] < heads:
        cos, sin = (part.repeat_interleave(heads // part.shape[1], dim=1) for part in (cos, sin))
    return rotate(queries, (cos, sin))


def attention_weights(queries: Tensor, keys: Tensor, scaling: float, window: int, each: bool = False) -> Tensor:
    """Causal attention of the last `window` rotated queries to rotated keys, (B, H_kv, w, L) float32, group mean.

    `each`: of every query head, (B, H, w, L).
    """
    batch, heads, count, size = queries.shape
    kv_heads, length = keys.shape[1:3]
    grouped = queries[:, :, count - window :].reshape(batch, kv_heads, heads // kv_heads * window, size)
    logits = (grouped @ keys.mT).view(batch, kv_heads, -1, window, length).float() * scaling
    if window > 1:
        logits.masked_fill_(~causal_mask(window, length, keys.device), -torch.inf)
    weights = logits.softmax(-1)
    return weights.flatten(1, 2) if each else weights.mean(2)


def causal_mask(rows: int, length: int, device: torch.device) -> Tensor:
    """(rows, length) bool: the last `rows` of `length` tokens, each seeing itself and what came before."""
    return torch.ones(rows, length, dtype=torch.bool, device=device).tril(length - rows)
