"""One layer of the KV cache: what it holds, and what a policy may ask it and do to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from edgemllm.cache.bits import UNQUANTISED, WHOLE, Channels, KVBits, newest_exact
from edgemllm.cache.columns import columns
from edgemllm.cache.counts import Counts
from edgemllm.cache.forward_pass import Pass
from edgemllm.cache.kv_store import NAMES, KVStore
from edgemllm.cache.lookout import Lookout
from edgemllm.cache.numbering import Numbering
from edgemllm.cache.rope import Rope, Rotation, inverse, rotate, rotate_queries
from edgemllm.cache.scores import attention_weights, group_mean
from edgemllm.cache.slots import Slots

GROWTH = 1024
"""An unbounded layer grows by at least this many slots, and by half of what it holds."""


class CacheLayer(CacheLayerMixin):  # type: ignore[misc]
    """One decoder layer with room for `budget` tokens (None: grows without end), and the sliding `window` of its attention.

    Keys are stored rotated to their slots' positions where `numbering.rotated`, else unrotated. Unrotated are `queries`
    (B, H, w, D), the latest `query_window` ones.
    """

    store_rotated: ClassVar[bool] = True
    """Store rotated keys where that is exact: in single precision, or where slots stay; with a fixed rotary embedding."""

    def __init__(
        self,
        rope: Rope,
        positions: str = "cache",
        buffers: Sequence[str] = (),
        layer_stats: Sequence[str] = (),
        query_window: int = 0,
        budget: int | None = None,
        window: int | None = None,
        bits: KVBits = UNQUANTISED,
    ) -> None:
        self.is_initialized = False  # keys and values, which transformers sets too, are views of `slots` here
        self.rope, self.mode, self.buffers, self.layer_stats = rope, positions, buffers, layer_stats
        self.query_window, self.budget, self.window, self.bits = query_window, budget, window, bits
        self.newest_exact = newest_exact(budget)  # of the first budget: what plans count
        self.counts = Counts()
        self.stats: dict[str, Tensor] = {}
        """What the policy notes about the whole layer."""
        self.queries: Tensor | None = None
        self.focus: Lookout | None = None
        self.channels: Mapping[str, Channels] = {}
        """Of its unrotated `keys` and its `values`, where these are quantised."""
        self.shared, self.scaling = False, 1.0  # `shared`: later layers read it too
        self.slots: Slots
        self.store: KVStore
        self.numbering: Numbering
        self.now: Pass | None = None
        """The forward pass that runs, or the last one."""

    # ---- what transformers calls -------------------------------------------------------------------------------

    def lazy_initialization(self, keys: Tensor, values: Tensor) -> None:
        """Allocate every slot; from here on a bounded layer's memory changes only when budgets are allocated anew."""
        self.dtype, self.device, self.widths = keys.dtype, keys.device, (keys.shape[-1], values.shape[-1])
        capacity = self.budget if self.budget is not None else max(GROWTH, keys.shape[2])
        table = columns(keys.shape[-1], values.shape[-1], self.rope.axes, self.mode, self.buffers, self.bits)
        self.slots = Slots(table, keys, capacity)
        self.store = KVStore(self.slots, self.bits, self.channels, self.widths, self.newest_exact, keys)
        stay = self.budget is None or self.mode == "original"  # slots keep their positions, so that keys are rotated once
        rotated = self.store_rotated and self.rope.fixed and (stay or keys.dtype.itemsize >= 4) and self.bits.keys == WHOLE
        self.numbering = Numbering(self.slots, self.rope, self.mode, rotated)
        self.stats = {name: torch.zeros((), device=keys.device) for name in self.layer_stats}
        self.is_initialized = True

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Make room, append keys and values (B, H_kv, q, D), and return them."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        rotation = self.admit(keys.shape[2])
        self.store.append(rotate(keys, rotation) if self.numbering.rotated else keys, values)
        return keys, values  # attention reads the layer itself

    def admit(self, count: int) -> Rotation:
        """Make room for `count` tokens, and return the rotation of their positions; their keys and values are still to come."""
        assert self.now is not None
        self.make_room(count)
        self.advance(count, self.now.tokens)
        self.now.rotation = self.numbering.append(self.now, count, intact=not self.counts.evicted)
        return self.now.rotation

    def advance(self, count: int, tokens: Mapping[str, Tensor]) -> None:
        """Count tokens in, and append what is known of them; nothing where a graph has written it."""
        self.slots.append(count, tokens)
        self.counts.seen += count
        self.counts.new_since_eviction += count

    def get_seq_length(self) -> int:
        """Return the tokens ever seen, which transformers takes for the length of the sequence."""
        return self.counts.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the keys after the update and where they start; unused, since our attention makes its own mask."""
        return self.length + query_length, self.counts.seen - self.length

    def get_max_length(self) -> int:
        """Return -1: no limit to the stream."""
        return -1

    def reset(self) -> None:
        """Forget everything and keep the memory."""
        self.counts = Counts()
        if self.is_initialized:
            self.store.clear()
        for number in self.stats.values():
            number.zero_()

    # ---- what policies use: live slots, in the order of the stream -----------------------------------------------

    @property
    def length(self) -> int:
        """Return L, the number of live slots."""
        return self.slots.length if self.is_initialized else 0

    @property
    def kv_heads(self) -> int:
        """Return H_kv."""
        return self.slots.tensors["keys"].shape[1]

    @property
    def keys(self) -> Tensor:
        """Return the keys (B, H_kv, L, D), rotated or not as they are stored; see `rotated_keys` and `unrotated_keys`."""
        return self.store.read("keys")

    @property
    def values(self) -> Tensor:
        """Return the values (B, H_kv, L, D)."""
        return self.store.read("values")

    @property
    def positions(self) -> Tensor:
        """Return the positions in the stream, (A, B, H_kv, L) int32."""
        return self.slots.live("positions").permute(3, 0, 1, 2)

    @property
    def modality(self) -> Tensor:
        """Return the `Modality` of every slot, (B, H_kv, L) uint8."""
        return self.slots.live("modality")

    @property
    def time(self) -> Tensor:
        """Return seconds of video, or for text the line of a document, (B, H_kv, L) float32; NaN where there is none."""
        return self.slots.live("time")

    @property
    def peers(self) -> list[CacheLayer]:
        """Return the layers under the same policy, itself among them, in the order of the model."""
        assert self.now is not None
        return [layer for each in self.now.managed if (layer := each()) is not None]

    @property
    def observed(self) -> slice:
        """Return the slots whose queries `CachePolicy.observe` is being shown."""
        assert self.now is not None
        return self.now.observed

    def buffer(self, name: str) -> Tensor:
        """Return what the policy notes about every slot, (B, H_kv, L) float32, a view; new tokens start at zero."""
        return self.slots.live(name)

    def keep(self, index: Tensor) -> None:
        """Keep the slots at `index` (B, H_kv | 1, n) in their temporal order, forget the rest."""
        index = index.sort(dim=-1).values
        self.counts.evicted += self.length - index.shape[-1]
        self.counts.compactions += 1
        self.counts.new_since_eviction = 0
        self.store.keep(index, self.numbering.shift(self.now, index))
        self.numbering.close_gaps()

    def rotated_keys(self) -> Tensor:
        """Return the keys (B, H_kv, L, D), rotated to their positions; not to be written to."""
        return self.keys if self.numbering.rotated else rotate(self.keys, self.numbering.rotation(self.now))

    def unrotated_keys(self, slots: slice = slice(None)) -> Tensor:
        """Return the keys (B, H_kv, L, D), or those of some slots, as the model made them; not to be written to."""
        keys = self.store.read("keys", slots)
        return rotate(keys, inverse(self.numbering.rotation(self.now, slots))) if self.numbering.rotated else keys

    def window_attention(self, rows: int | None = None) -> Tensor:
        """Return the attention of the latest queries to the slots, (B, H_kv, w, L) float32, mean over the query group.

        w: all that are kept, or `rows` of them. Their own tokens must still be the last live slots: a policy never evicts them.
        """
        assert self.queries is not None
        seen = self.counts.seen
        kept = min(self.queries.shape[2], seen)
        window = kept if rows is None else min(rows, kept)
        latest = torch.arange(seen - window, seen, device=self.device) % self.queries.shape[2]
        rotation = self.rope.at(self.numbering.positions()[..., -window:], self.slots.like)
        rotated = rotate_queries(self.queries[:, :, latest], rotation)
        return group_mean(attention_weights(rotated, self.rotated_keys(), self.scaling), self.kv_heads)

    def remember_queries(self, queries: Tensor, scaling: float) -> None:
        """Keep the latest unrotated queries of (B, H, q, D) in a ring; token i lies at i modulo w."""
        assert self.now is not None
        if self.queries is None:
            self.queries = queries.new_zeros(*queries.shape[:2], self.query_window, queries.shape[-1])
        self.scaling = scaling
        self.queries.index_copy_(2, self.now.ring, queries[:, :, -len(self.now.ring) :])

    # ---- memory ------------------------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """Return the bytes of every live tensor of this layer."""
        if not self.is_initialized:
            return 0
        noted = sum(each.nbytes for each in (self.queries, *self.channels.values()) if each is not None)
        return self.store.nbytes + noted + sum(number.nbytes for number in self.stats.values())

    def make_room(self, count: int) -> None:
        """See to it that `count` more tokens fit."""
        capacity, wanted = self.slots.capacity, self.length + count
        if wanted > capacity and self.budget is None:
            self.slots.resize(max(wanted, capacity + GROWTH, capacity + capacity // 2))
        elif wanted > capacity and self.budget is not None:  # trimmed earlier to save memory; grows back on demand
            self.slots.resize(min(max(wanted, capacity + capacity // 8), self.budget))

    def trim(self) -> None:
        """Give back the memory beyond the live slots; the layer grows again as it needs, up to its budget."""
        if self.is_initialized and self.slots.capacity > self.length:
            self.slots.resize(self.length)

    # ---- saving ------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what a saved session holds of this layer: live tensors by name, and plain values."""
        values: dict[str, Any] = {"length": self.length, "budget": self.budget, "scaling": self.scaling}
        values["counts"] = dataclasses.asdict(self.counts)
        if not self.is_initialized:
            return {}, values
        tensors, more = self.store.state()
        tensors |= {f"stats.{name}": number for name, number in self.stats.items()}
        if self.queries is not None:
            tensors["queries"] = self.queries
        for name, each in self.channels.items():
            tensors |= {f"channels.{name}.mean": each.mean, f"channels.{name}.width": each.width}
        # The same capacity again, so that an unbounded layer grows at the same lengths.
        more |= {"widths": self.widths, "dtype": str(self.dtype).removeprefix("torch."), "capacity": self.slots.capacity}
        return tensors, {**values, **more}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put in what `state` gave, within this layer's own budget."""
        self.reset()
        self.counts, self.scaling = Counts(**values["counts"]), values["scaling"]
        self.queries = tensors.get("queries")
        evened = [name for name in NAMES if f"channels.{name}.mean" in tensors]
        self.channels = {name: Channels(*(tensors[f"channels.{name}.{part}"] for part in ("mean", "width"))) for name in evened}
        if self.is_initialized:
            self.store.channels = self.channels
        if "keys" not in tensors:
            return
        length = tensors["keys"].shape[2]
        if not self.is_initialized:
            capacity = values["capacity"] if self.budget is None else length
            kind = getattr(torch, values["dtype"])
            empty = tensors["keys"].new_empty((), dtype=kind).expand(*tensors["keys"].shape[:2], capacity, 1)
            self.lazy_initialization(*(empty.expand(-1, -1, -1, width) for width in values["widths"]))
        elif self.slots.capacity < length:  # trimmed by an earlier run
            self.slots.resize(self.budget or length)
        self.store.load(tensors, values)
        self.stats = {name: tensors[f"stats.{name}"] for name in self.stats}
