"""One layer of the bounded KV cache: slots allocated once, room made before tokens come in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from edgemllm.cache.chunk import Chunk
from edgemllm.cache.rope import Rope, Rotation, close_gaps, go_on, inverse, rotate, rotate_, rotate_queries
from edgemllm.cache.scores import attention_weights, group_mean
from edgemllm.cache.slots import Storage, gather
from edgemllm.errors import OutOfMemoryError

if TYPE_CHECKING:
    from edgemllm.policies.base import CachePolicy

GROWTH = 1024
"""An unbounded layer grows by at least this many slots, and by half of what it holds."""


class CacheLayer(Storage, CacheLayerMixin):  # type: ignore[misc]
    """One decoder layer.

    keys are turned by their slots' rotation where `rotated`, else unrotated; places are renumbered positions, only for
    several axes: one axis numbers its slots 0..L-1.
    queries  (B, H, w, D), the latest queries, unrotated, only where the policy asks for them
    prompt   tokens of the stream before the newest prompt
    """

    def __init__(self, policy: CachePolicy, rope: Rope, budget: int | None, window: int | None = None) -> None:
        super().__init__()
        self.policy, self.rope, self.budget, self.window = policy, rope, budget, window
        self.length = self.seen = self.since = self.evicted = self.compactions = self.prompt = 0
        self.streamed = False
        """A policy published for one prompt had to evict before that prompt's end."""
        self.rows = slice(0)
        """The slots whose queries `observe` sees."""
        self.slots = {}
        self.stats: dict[str, Tensor] = {}
        self.places = None
        self.queries: Tensor | None = None
        self.scaling = 1.0
        self.keeps_turned = True
        """Store turned keys where that is exact: in single precision, with a rotary embedding that does not change."""
        self.rotated = False
        """Keys are stored turned, as attention needs them."""
        self.incoming: Chunk
        self.ring: Tensor
        """(min(q, w),) where in `queries` the coming tokens belong."""
        self.turn: Rotation
        """Of the tokens that came in last."""

    # ---- what transformers calls -------------------------------------------------------------------------------

    def lazy_initialization(self, keys: Tensor, values: Tensor) -> None:
        """Allocate every slot; from here on a bounded layer's memory changes only where its policy shares anew."""
        self.dtype, self.device = keys.dtype, keys.device
        room = self.budget if self.budget is not None else max(GROWTH, keys.shape[2])
        numbered = self.rope.axes > 1 and self.policy.positions == "cache"
        self.allocate(keys, values, room, self.rope.axes, numbered, self.policy.slots)
        self.rotated = self.keeps_turned and keys.dtype.itemsize >= 4 and self.rope.fixed
        self.stats = {name: torch.zeros((), device=keys.device) for name in self.policy.scalars}
        self.is_initialized = True

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Make room, append keys and values (B, H_kv, q, D), and return the live ones (B, H_kv, L, D)."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        count = keys.shape[2]
        self.make_room(count)
        new = slice(self.length, self.length + count)
        self.write(new, values, self.incoming)
        if self.places is not None:
            self._number(count)
        self.turn = self._coming(count, keys)
        self.keys[:, :, new] = rotate(keys, self.turn) if self.rotated else keys
        self.count(count)
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def count(self, coming: int) -> None:
        """So many tokens have come in."""
        self.length += coming
        self.seen += coming
        self.since += coming

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
        for notes in self.slots.values():
            notes.zero_()
        self.length = self.seen = self.since = self.evicted = self.compactions = self.prompt = 0
        self.streamed = False
        for number in self.stats.values():
            number.zero_()

    # ---- what policies use -------------------------------------------------------------------------------------

    def keep(self, index: Tensor) -> None:
        """Keep the slots at `index` (B, H_kv | 1, n) in their temporal order, forget the rest."""
        index = index.sort(dim=-1).values
        before, size, turn = self.length, index.shape[-1], None
        if self.rotated and self.policy.positions == "cache" and self.places is None:
            # A slot moves forward by as many as went before it; one that stays is turned by exactly nothing.
            by = index - torch.arange(size, device=index.device)
            cos, sin = inverse(self.rope.span(0, before - size + 1, self.keys))
            turn = cos[0, 0, by], sin[0, 0, by]
        self.pick(index, turn)
        self.evicted += before - size
        self.compactions += 1
        self.since = 0
        if self.places is not None:
            self._renumber(close_gaps(self.positions[..., :size], self.rope.step))

    def rotated_keys(self) -> Tensor:
        """The live keys (B, H_kv, L, D), turned to their places; not to be written to."""
        keys = self.keys[:, :, : self.length]
        return keys if self.rotated else rotate(keys, self.rotation())

    def unrotated_keys(self, slots: slice = slice(None)) -> Tensor:
        """The live keys (B, H_kv, L, D), or those of some slots, as the model made them; not to be written to."""
        keys = self.keys[:, :, : self.length][:, :, slots]
        return rotate(keys, inverse(self.rotation(slots))) if self.rotated else keys

    def put_keys(self, index: Tensor, rows: Tensor, changed: Tensor) -> None:
        """Write unrotated rows (B, H_kv, n, D) to the slots at `index` (B, H_kv, n), where `changed` (B, H_kv, n, 1)."""
        if self.rotated:
            turns = [part.expand(-1, rows.shape[1], -1, -1) for part in self.rotation()]
            rows = rotate(rows, (gather(turns[0], index), gather(turns[1], index)))
        wide = index[..., None].expand(rows.shape)
        self.keys.scatter_(2, wide, torch.where(changed, rows, gather(self.keys, index)))

    def rotation(self, slots: slice = slice(None)) -> Rotation:
        """The rotation of every live slot, or of some."""
        if self.policy.positions == "cache" and self.places is None:
            cos, sin = self.rope.span(0, self.length, self.keys)
            return cos[:, :, slots], sin[:, :, slots]
        return self.rope.at(self.rotary_positions()[..., slots], self.keys)

    def rotary_positions(self) -> Tensor:
        """The position of every live slot under the policy's numbering, (A, B, H_kv | 1, L)."""
        if self.policy.positions == "original":
            return self.positions[..., : self.length]
        if self.places is None:
            return torch.arange(self.length, device=self.device).view(1, 1, 1, -1)
        return self.places[..., : self.length]

    def inside_window(self, count: int) -> Tensor:
        """(B, H_kv | 1, count, L) bool: the live slots inside the sliding window of each of the last `count` tokens.

        Distances are those of the policy's numbering, so that under `cache` what survived stays in sight.
        """
        assert self.window is not None
        places = self.rotary_positions()[0]
        return places[..., -count:, None] - places[..., None, :] < self.window

    def window_attention(self, rows: int | None = None) -> Tensor:
        """Attention of the latest queries to the live slots, (B, H_kv, w, L) float32, mean over the query group.

        w: all that are kept, or `rows` of them. Their own tokens must still be the last live slots: a policy never evicts them.
        """
        assert self.queries is not None
        kept = min(self.queries.shape[2], self.seen)
        window = kept if rows is None else min(rows, kept)
        latest = torch.arange(self.seen - window, self.seen, device=self.device) % self.queries.shape[2]
        rotation = self.rope.at(self.rotary_positions()[..., -window:], self.keys)
        turned = rotate_queries(self.queries[:, :, latest], rotation)
        return group_mean(attention_weights(turned, self.rotated_keys(), self.scaling), self.keys.shape[1])

    def remember_queries(self, queries: Tensor, scaling: float) -> None:
        """Keep the latest unrotated queries of (B, H, q, D) in a ring; token i lies at i modulo w."""
        if self.queries is None:
            self.queries = queries.new_zeros(*queries.shape[:2], self.policy.query_window, queries.shape[-1])
        self.scaling = scaling
        self.queries.index_copy_(2, self.ring, queries[:, :, -len(self.ring) :])

    # ---- numbering ---------------------------------------------------------------------------------------------

    def _coming(self, count: int, like: Tensor) -> Rotation:
        """The rotation of the next `count` slots, shared by the layers in which they have the same places."""
        if self.policy.positions == "original":
            return self.rope.once("original", lambda: self.incoming.positions[:, :, None], like)
        if self.places is None:
            return self.rope.span(self.length, self.length + count, like)
        places = self.places[..., self.length : self.length + count]
        if self.evicted:
            return self.rope.at(places, like)
        return self.rope.once("intact", lambda: places[:, :, :1], like)

    def _number(self, count: int) -> None:
        """Give the next `count` slots their places, and those before them new ones where the coming ones fall among them."""
        assert self.places is not None
        stop = self.length + count
        known, coming = self.positions[..., : self.length], self.positions[..., self.length : stop]
        if self.incoming.ahead and self.length:
            places = go_on(known, self.places[..., : self.length], coming, self.rope.step)
            self.places[..., self.length : stop] = places
            return
        places = close_gaps(self.positions[..., :stop], self.rope.step)
        if self.length:
            self._renumber(places[..., : self.length])
        self.places[..., :stop] = places

    def _renumber(self, places: Tensor) -> None:
        """Renumber the live slots to `places` (A, B, H_kv, L)."""
        assert self.places is not None
        live = self.places[..., : self.length]
        if self.rotated:
            rotate_(self.keys[:, :, : self.length], self.rope.at(places - live, self.keys))
        live.copy_(places)

    # ---- memory ------------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Bytes of every live tensor of this layer."""
        if not self.is_initialized:
            return 0
        queries = [] if self.queries is None else [self.queries]
        tensors = [self.keys, self.values, *self.notes(), *self.stats.values(), *queries]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def make_room(self, count: int) -> None:
        """See to it that `count` more tokens fit: grow, or let the policy choose what goes."""
        if self.budget is not None and self.length + count > self.budget:
            self._evict(self.budget, count)
        have, wanted = self.keys.shape[2], self.length + count
        if wanted > have:
            if self.budget is None:
                self.reallocate(max(wanted, have + GROWTH, have + have // 2))
            else:  # it was trimmed to save memory, and goes on as it must
                self.reallocate(min(max(wanted, have + have // 8), self.budget))

    def _evict(self, budget: int, count: int) -> None:
        if not self.policy.bounded:
            raise OutOfMemoryError(
                f"policy full holds {self.length} tokens a layer and never evicts, {count} more exceed "
                f"the KV budget of {budget}",
                "choose a bounded policy (--policy inf-mllm) or a larger --kv-budget",
            )
        size = budget - max(count, self.policy.spare(budget))
        # A chunk that fits beside the policy's minimum is the session's promise; slack gives way to it.
        size = min(max(size, min(self.policy.minimum(), budget - count)), self.length)
        self.streamed = self.streamed or self.policy.one_shot
        self.policy.compress(self, size)
        assert self.length + count <= budget, "the policy kept more than it was told to"

    def trim(self) -> None:
        """Give back the memory beyond the live slots; the layer grows again as it needs, up to its budget."""
        if self.is_initialized and self.keys.shape[2] > self.length:
            self.reallocate(self.length)

    def resize(self, budget: int) -> None:
        """Another budget from now on; the policy chooses what stays of too much."""
        self.budget = budget
        if self.is_initialized:
            if self.length > budget:
                self.policy.compress(self, budget)
            self.reallocate(budget)
