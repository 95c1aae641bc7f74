"""What the cache costs in bytes before a single token is in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgemllm.cache.bits import FIRST, UNQUANTISED, KVBits, newest_exact
from edgemllm.cache.columns import ITEM_BYTES, columns

if TYPE_CHECKING:
    from edgemllm.cache.policy import CachePolicy


@dataclass(frozen=True)
class LayerSpec:
    """The shape of what one decoder layer remembers."""

    kind: Literal["full", "sliding", "state", "shared"] = "full"
    """`full` and `sliding` hold keys and values; `state` holds numbers that do not grow with the stream (linear attention,
    short convolutions); `shared` holds nothing and reads the keys and values of an earlier layer."""

    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    window: int | None = None
    """The newest tokens that a sliding layer attends to."""

    rotary: bool = True
    """Whether positions rotate its keys."""

    state_values: int = 0
    """Numbers of a constant state in the dtype of keys and values."""

    state_floats: int = 0
    """Numbers of a constant state in float32, whatever the dtype."""

    source: int | None = None
    """The layer that a shared one reads."""


@dataclass(frozen=True)
class CacheSpec:
    """The shape of a model's KV cache."""

    layers: tuple[LayerSpec, ...]
    itemsize: int
    """Bytes of one number of a key or value."""
    axes: int = 1
    """Position axes: 1 for RoPE, 3 for M-RoPE."""
    bits: KVBits = UNQUANTISED
    """Of the numbers of keys and values."""
    focus: int = 0
    """Queries of what will be asked that are kept in all layers together (focus.py)."""

    @property
    def managed(self) -> tuple[LayerSpec, ...]:
        """Return the layers that a policy decides for."""
        kind = managed_kind(self.layers)
        return tuple(layer for layer in self.layers if layer.kind == kind)

    @property
    def state_bytes(self) -> int:
        """Return the bytes of all constant states."""
        return sum(layer.state_values * self.itemsize + layer.state_floats * 4 for layer in self.layers)

    def token_bytes(self, policy: CachePolicy) -> int:
        """Return the bytes of one cached token over all managed layers."""
        return sum(self._slot_bytes(layer, policy.positions, policy.buffers) for layer in self.managed)

    def fixed_bytes(self, policy: CachePolicy, chunk: int = 1, budget: int | None = None) -> int:
        """Return the bytes that do not grow with the budget, in slots per layer (None: large, or without end).

        These are a policy's queries and layer statistics, constant states, exact rows beside codes, and sliding layers beside
        full ones, which are fed `chunk` tokens.
        """
        managed = self.managed
        queries = [layer.heads * layer.head_dim * self.itemsize for layer in managed]
        noted = policy.query_window * sum(queries) + 4 * len(policy.layer_stats) * len(managed)
        channels = sum(2 * layer.kv_heads * layer.head_dim * self.itemsize for layer in self.layers if layer.kind != "shared")
        noted += len(self.bits.coded) * channels
        noted += sum(self._exact_bytes(layer, budget) for layer in managed)
        sliding = [
            (layer, layer.window - 1 + chunk)
            for layer in self.layers
            if layer.window is not None and layer.kind not in (managed[0].kind, "shared")
        ]
        windows = sum(slots * self._slot_bytes(layer, "cache") + self._exact_bytes(layer, slots) for layer, slots in sliding)
        return self.focus * max(queries) + windows + noted + self.state_bytes

    def _exact_bytes(self, layer: LayerSpec, budget: int | None) -> int:
        """Return the bytes of the exact rows of a layer with `budget` slots."""
        numbers = len(self.bits.coded) * layer.kv_heads * layer.head_dim
        return (FIRST + newest_exact(budget)) * numbers * self.itemsize

    def _slot_bytes(self, layer: LayerSpec, positions: str, buffers: Sequence[str] = ()) -> int:
        table = columns(layer.head_dim, layer.head_dim, self.axes, positions, buffers, self.bits)
        numbers = sum(math.prod(column.shape) * ITEM_BYTES.get(column.dtype, self.itemsize) for column in table)
        return layer.kv_heads * numbers


def managed_kind(layers: Sequence[LayerSpec]) -> str:
    """Return the kind of layer that a policy decides for: full ones, or sliding ones where all layers with keys slide."""
    return "full" if any(layer.kind == "full" for layer in layers) else "sliding"
