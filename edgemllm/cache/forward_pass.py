"""What is valid for one forward pass only."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from edgemllm.cache.chunk import Chunk
from edgemllm.cache.rope import Rotation

T = TypeVar("T")


@dataclass
class Pass:
    """A chunk on its way through the layers, and what these share meanwhile."""

    chunk: Chunk
    ring: Tensor
    """(min(q, w),) the rows of a layer's latest queries that the chunk's last ones are written to."""
    managed: Sequence[weakref.ref[Any]] = ()
    """The layers under the policy; weakly, as they hold the pass, and a cache that is dropped is to be gone at once."""
    rotation: Rotation = field(init=False)
    """Of the chunk's tokens in the layer that is running."""
    observed: slice = field(default_factory=lambda: slice(0))
    """The slots whose queries the policy is being shown."""
    rotations: dict[Hashable, Any] = field(default_factory=dict)
    """What layers with the same rotation share of it."""
    tokens: dict[str, Tensor] = field(init=False)
    """What slots hold of the chunk's tokens besides keys and values, as `Slots.append` takes it."""
    read: dict[Hashable, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Rotated keys and values of layers that later ones read too."""

    def __post_init__(self) -> None:
        chunk = self.chunk
        self.tokens = {
            "positions": chunk.positions.permute(1, 2, 0)[:, None],
            "modality": chunk.modality[:, None],
            "time": chunk.time[:, None],
        }

    def shared(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return what `key` names, computed for the first layer that asks."""
        if key not in self.rotations:
            self.rotations[key] = compute()
        found: T = self.rotations[key]
        return found
