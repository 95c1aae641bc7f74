"""Layers without slots of their own, in models of mixed kinds: nothing in them can be evicted or rewound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers.cache_utils import LinearAttentionLayer

from edgemllm.cache.forward_pass import Pass
from edgemllm.cache.managed_layer import ManagedLayer


class StateLayer(LinearAttentionLayer):  # type: ignore[misc]
    """A layer with a state of constant size: linear attention, or a short convolution. transformers' own, counted and saved."""

    @property
    def nbytes(self) -> int:
        """Return the bytes of the state."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what a saved session holds of this layer: tensors by name, and plain values."""
        return self._tensors(), {}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put in what `state` gave."""
        self.reset()
        if "conv" in tensors:
            self.update_conv_state(tensors["conv"])
        if "recurrent" in tensors:
            self.update_recurrent_state(tensors["recurrent"])

    def _tensors(self) -> dict[str, Tensor]:
        found = {"conv": self.conv_states[0], "recurrent": self.recurrent_states[0]}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


class SharedLayer:
    """A layer that reads the slots of an earlier one, `source`, in which that one's policy decides."""

    nbytes = 0

    def __init__(self, source: ManagedLayer) -> None:
        self.source = source
        source.shared = True

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return nothing: a saved session holds the source."""
        return {}, {}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Do nothing, as there is nothing to put in."""


def read(layer: ManagedLayer, now: Pass) -> tuple[Tensor, Tensor]:
    """Return rotated keys and values of a layer, prepared once in a pass for all that read it."""
    if layer not in now.read:
        found = layer.rotated_keys(), layer.values
        if not layer.shared:
            return found
        now.read[layer] = found
    return now.read[layer]
